"""A worker process: trains, predicts and judges what it is handed, and has plugins of others run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from robbench.core.device import prepare_device
from robbench.core.errors import StoreError
from robbench.execution.helpers import Helpers
from robbench.execution.jobs import Progress, judge, only_here, predict, train_model
from robbench.execution.ready import Ready, provenance_of
from robbench.execution.tasks import Failure, Over, Task, Written
from robbench.planning.plan import Plan
from robbench.results.store import Store


@dataclass(frozen=True)
class Begun:
    """Says that a task is begun: the process has started."""


@dataclass(frozen=True)
class Outbox(Store):
    """A store that is only read: what training writes is sent to the process that drives the run and holds the lease.

    Attributes:
        send: Sends it.
    """

    send: Callable[[object], None]

    def lease(self, kind: str, key: str, most: float = 0.0) -> AbstractContextManager[None]:
        """Nothing: whoever writes holds it."""
        return nullcontext()

    def write_model(self, key: str, info: Mapping[str, Any], weights: bytes, history: str) -> None:
        """Send a trained model."""
        self.send(Written("write_model", (info, weights, history)))

    def write_diverged(self, key: str, history: str) -> None:
        """Send how a training went that came to no model."""
        self.send(Written("write_diverged", (history,)))

    def write_checkpoint(self, key: str, data: bytes | None) -> None:
        """Send the state of an unfinished training."""
        self.send(Written("write_checkpoint", (data,)))


@dataclass
class _Open:
    """A portion that is unpacked, its model as far as it is loaded, and provenance once it was looked up."""

    digest: str
    plan: Plan
    ready: Ready | None = None
    provenance: dict[str, Any] | None = None


def work(parent: Connection) -> None:
    """Carry out tasks until no more come."""
    opened: _Open | None = None
    check = only_here()

    def send(message: object) -> None:
        check()
        parent.send(message)

    while True:
        try:
            task: Task = parent.recv()
        except EOFError:
            return
        send(Begun())
        error = ""
        try:
            torch.set_num_threads(task.needs.cpus)
            if opened is None or opened.digest != task.digest:
                opened = None  # the memory of what was open is free first
                assert task.portion is not None
                opened = _Open(task.digest, task.portion.open())
            _carry_out(task, opened, send, Helpers(parent, task))
        except StoreError as failed:
            error = str(failed) or "the store cannot be written"
        send(Over(error))


def _carry_out(task: Task, opened: _Open, send: Callable[[object], None], helpers: Helpers) -> None:
    plan = opened.plan
    job, store = plan.jobs[0], Outbox(plan.request.out, send)
    prepare_device(plan.device, plan.request.deterministic)
    if task.step == "train":
        failure = train_model(plan, job, store, send)
        if failure is not None:
            send(failure)
    elif task.step == "predict":
        send(Progress(job.label, "loading"))
        made = predict(plan, job, task.asked, store)
        if isinstance(made, Failure):
            send(made)
        else:
            # They are needed once.
            predicted = replace(made.predicted, embeddings=None)
            opened.ready = replace(made, predicted=predicted)
            send(made.predicted)
    else:
        if opened.ready is None:
            assert task.predicted is not None
            opened.ready = Ready(plan, job, store, task.predicted)
        (cell,) = (cell for cell in job.cells if cell.key == task.key)
        opened.provenance = opened.provenance or provenance_of(plan.device, task.facts.plugins, job)
        send(judge(opened.ready, cell, opened.provenance, send, helpers))
