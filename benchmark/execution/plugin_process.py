"""Where attacks and metrics of plugins run: processes that only exchange plain arrays with those that judge."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robbench.core.batches import out_of_memory
from robbench.core.device import prepare_device
from robbench.core.errors import explain, trace_of
from robbench.core.registry import Registry
from robbench.core.safe_text import one_line
from robbench.evaluation.attack_run import (
    Attacker,
    AttackInput,
    StageImages,
    checked_stages,
)
from robbench.evaluation.scoring import foreign_figures, with_figures
from robbench.execution.portion import Portion
from robbench.planning.plan import Job
from robbench.results.schema import Measure, Outcome, Record
from robbench.results.store import Store
from robbench.training.model_loading import load_model

_HEADER = 1 << 24
"""Largest header, in bytes."""
_LONGEST = 1000
_LONGEST_TRACE = 20_000
"""Letters of an error that a plugin's process reports, and of its traceback."""
_TYPES = ("float32", "float64", "int64", "uint8")

_Message: TypeAlias = tuple[dict[str, Any], list[NDArray[Any]]]
_Answer: TypeAlias = Callable[[dict[str, Any], list[NDArray[Any]]], _Message]


class PluginFailure(Exception):
    """What runs a plugin reports that it failed.

    Args:
        reason: What goes into the record.
        trace: The traceback there, where it is known.
    """

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


class Lost(Exception):
    """What runs a plugin is gone, or answers nonsense."""


# --- plain arrays over a pipe: nothing that is read here is unpickled


def send(connection: Connection, facts: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Send facts that JSON can hold, and arrays."""
    described = [[array.dtype.name, array.shape] for array in arrays]
    connection.send_bytes(json.dumps({"facts": facts, "arrays": described}).encode("ascii"))
    for array in arrays:
        connection.send_bytes(array.tobytes())


def receive(connection: Connection, most: int, seconds: float | None = None) -> _Message:
    """Receive facts, and arrays of at most so many bytes each.

    Raises:
        Lost: If something else comes, nothing in so many seconds, or nothing any more.
    """
    try:
        if not connection.poll(seconds):
            raise Lost("no answer in time")
        header = json.loads(connection.recv_bytes(_HEADER))
        facts, arrays = dict(header["facts"]), []
        for name, shape in header["arrays"]:
            if name not in _TYPES:
                raise ValueError(f"arrays of {name}")
            data = bytearray(connection.recv_bytes(most))
            arrays.append(np.frombuffer(data, dtype=name).reshape(shape))
    except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise Lost(str(error)) from error
    return facts, arrays


# --- in the process that judges


@dataclass(frozen=True)
class RemoteAttacker:
    """Attacks that are run in a process of their own.

    Attributes:
        connection: The pipe to that process.
        stages: The number of attacks in a row.
    """

    connection: Connection
    stages: int

    def __call__(self, given: AttackInput) -> Iterator[StageImages]:
        """Have a batch attacked.

        Raises:
            PluginFailure: If an attack fails, or breaks a rule where it runs.
            Lost: If the process is gone.
            MemoryError: If it has too little memory for the batch.
        """
        tensors = [given.images, given.labels, given.ids, *([] if given.targets is None else [given.targets])]
        arrays = [tensor.cpu().numpy() for tensor in tensors]
        facts, found = exchange(self.connection, {"draw": given.draw}, arrays, arrays[0].nbytes)
        if facts.get("memory"):
            raise MemoryError(facts.get("error"))
        count = len(given.labels)
        if len(found) != 4 * self.stages or any(
            array.shape != (count,) for place, array in enumerate(found) if place % 4
        ):
            raise Lost("an answer of another form")
        for position in range(0, len(found), 4):
            images, *spent, searched = (torch.from_numpy(array) for array in found[position : position + 4])
            if not all(bool((passes >= 0).all() & passes.isfinite().all()) for passes in spent):
                raise Lost("passes that are no counts")
            yield StageImages(images.to(given.images.device), spent[0], spent[1], searched != 0)


def exchange(
    connection: Connection,
    facts: dict[str, Any],
    arrays: Sequence[NDArray[Any]],
    most: int,
    seconds: float | None = None,
) -> _Message:
    """Ask a process that runs a plugin.

    Args:
        connection: The pipe to it.
        facts: What is asked.
        arrays: On what.
        most: Bytes that an array of the answer has at the most.
        seconds: How long to wait for the answer; None for as long as the process lives.

    Raises:
        PluginFailure: If the plugin failed.
        Lost: If the process is gone.
    """
    try:
        send(connection, facts, arrays)
    except OSError as error:
        raise Lost(str(error)) from error
    answer, found = receive(connection, max(most, 1 << 16), seconds)
    if "error" in answer and not answer.get("memory"):
        raise _failure(answer)
    return answer, found


def _failure(answer: dict[str, Any]) -> PluginFailure:
    return PluginFailure(one_line(answer["error"], _LONGEST), str(answer.get("trace", ""))[-_LONGEST_TRACE:])


def with_foreign_metrics(
    record: Record, outcome: Outcome, digest: str, connection: Connection, seconds: float | None = None
) -> Record:
    """A record with the metrics of plugins beside those that it has, which they cannot replace.

    Args:
        record: The record with its built-in metrics.
        outcome: What to measure.
        digest: Identifies all metrics.
        connection: The pipe to the process that measures.
        seconds: How long to wait; None for as long as the process lives.

    Raises:
        PluginFailure: If a metric fails.
        Breach: If what comes is no figure with a name of its own.
        Lost: If the process is gone.
    """
    data = np.frombuffer(outcome.to_bytes(), dtype=np.uint8)
    answer, _ = exchange(connection, {}, [data], 0, seconds)
    if "error" in answer:
        raise _failure(answer)
    try:
        given = {
            one_line(metric): {name: Measure(*values) for name, values in figures.items()}
            for metric, figures in answer["figures"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise Lost(str(error)) from error
    metrics = with_figures(record.metrics, given, outcome)
    return record.model_copy(update={"metrics": metrics, "metrics_digest": digest})


# --- in the process that runs a plugin


def attack(connection: Connection, portion: Portion, threads: int) -> None:
    """Attack batches in one cell until the judge has all that it wants."""

    def begin() -> _Answer:
        torch.set_num_threads(threads)
        plan = portion.open()
        prepare_device(plan.device, plan.request.deterministic)
        job, *peers = plan.jobs
        (cell,) = job.cells
        store = Store(plan.request.out)

        def load(of: Job, defended: bool = True) -> Any:
            return load_model(of, store, plan.device, defended)

        condition = cell.condition.bound([load(peer) for peer in _in_order(peers, cell.peers)])
        attacker = Attacker(load(job, not cell.condition.undefended), condition, job.seed)

        def answer(facts: dict[str, Any], arrays: list[NDArray[Any]]) -> _Message:
            images, labels, ids, *targets = (torch.from_numpy(array).to(plan.device) for array in arrays)
            given = AttackInput(images, labels, ids, targets[0] if targets else None, int(facts["draw"]))
            made: list[Tensor] = []
            for stage in checked_stages(condition, images, attacker(given)):
                made += [stage.images, stage.forwards.clone(), stage.backwards.clone(), stage.searched.to(torch.uint8)]
            return {}, [tensor.cpu().numpy() for tensor in made]

        return answer

    _serve(connection, begin)


def measure_outcomes(connection: Connection, registry: Registry) -> None:
    """Measure outcomes with the metrics of plugins, until no more come."""

    def answer(facts: dict[str, Any], arrays: list[NDArray[Any]]) -> _Message:
        outcome = Outcome.from_bytes(arrays[0].tobytes())
        return {"figures": foreign_figures(outcome, registry)}, []

    _serve(connection, lambda: answer)


def _in_order(jobs: Sequence[Job], keys: Sequence[str]) -> list[Job]:
    by_key = {job.key: job for job in jobs}
    return [by_key[key] for key in keys]


def _serve(connection: Connection, begin: Callable[[], _Answer]) -> None:
    """Answer questions; what ``begin`` does is part of answering the first one."""
    own = os.getpid()
    answer: _Answer | None = None
    while True:
        try:
            facts, arrays = receive(connection, 1 << 40)
        except Lost:
            return
        try:
            answer = answer or begin()
            reply = answer(facts, arrays)
        except BaseException as error:  # SystemExit and the like: a plugin can only fail its own cell
            memory = isinstance(error, Exception) and out_of_memory(error)
            reply = {"error": explain(error), "trace": trace_of(error), "memory": memory}, []
        finally:
            # A plugin that forked comes back twice.
            if os.getpid() != own:
                os._exit(1)
        send(connection, *reply)
