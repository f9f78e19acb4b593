"""Carrying out a plan on this machine, in worker processes that this one watches."""

from __future__ import annotations

import contextlib
import math
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import send_handle
from typing import Any

import torch

from robbench.core.errors import StoreError, warn
from robbench.core.lease import Busy
from robbench.evaluation.scoring import metrics_digest, without_result
from robbench.execution.helpers import Facts, Gone, Task, Wanted
from robbench.execution.jobs import Progress, Tell, carry_out, provenance_of, without_outcome
from robbench.execution.plugin_process import attack, measure_outcomes
from robbench.execution.portion import judge_sources, portion_to_attack, portion_to_judge, proof_sources
from robbench.execution.processes import Child, prepare
from robbench.execution.worker import Begun, Over, work
from robbench.planning.plan import Cell, Job, Plan
from robbench.results.store import Store

Work = Sequence[tuple[Job, Sequence[Cell]]]

CELL_TIMEOUT = 24 * 3600.0
"""Seconds that one cell, or one epoch of training with plugins, may take."""
_MOMENT = 0.5
_GRACE = 30.0
"""Seconds for a worker to write down that the process that attacks for it was ended."""


def default_workers(device: str) -> int:
    """One on an accelerator; on a CPU one per core, four at the most."""
    return 1 if device != "cpu" else min(4, cores())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_locally(plan: Plan, work: Work, workers: int | None, tell: Tell, timeout: float = CELL_TIMEOUT) -> None:
    """Carry out the jobs in worker processes, each with its share of the cores.

    A job whose model starts from another's waits for it. A cell that costs its worker ends as a failed record, and
    another worker goes on with the rest.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done.
        workers: Number of worker processes, None for what suits the device.
        tell: Called in this process as work goes on.
        timeout: Seconds that one cell, or one epoch of training with plugins, may take.

    Raises:
        StoreError: If results cannot be kept.
    """
    if not work:
        return
    prepare()
    workers = workers or default_workers(plan.device)
    # One job keeps one worker busy, which may have all of the cores then.
    run = _Run.of(plan, work, max(1, cores() // min(workers, len(work))), tell, timeout)
    try:
        while run.waiting or run.busy:
            run.hand_out(workers)
            run.listen()
            run.end_overdue()
    finally:
        for worker in run.pool:
            worker.end()


def run_here(plan: Plan, work: Work, tell: Tell) -> None:
    """Carry out the jobs in this process, as a plan with models must be that were handed over as objects.

    Plugins are not kept apart then, and nothing watches the time.

    Raises:
        StoreError: If results cannot be kept.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    # As many as the worker of a run of one job has, on which the last digits of sums depend.
    torch.set_num_threads(cores())
    try:
        for job, cells in work:
            carry_out(plan, job, cells, tell)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@dataclass(frozen=True)
class _Item:
    """Some cells of a job that wait.

    Attributes:
        job: The job.
        cells: The cells.
        awaited: Keys of the models that must be trained first.
        alone: Whether nothing else is to be done meanwhile.
    """

    job: Job
    cells: Sequence[Cell]
    awaited: frozenset[str] = frozenset()
    alone: bool = False


def _items(plan: Plan, work: Work) -> list[_Item]:
    """Work with what it waits for: of the items of one job, the first one trains."""
    store = Store(plan.request.out)
    listed = {job.key for job, _ in work}
    earlier: set[str] = set()
    items: list[_Item] = []
    for job, cells in work:
        start = {other.key for other in plan.starts(job)[-1:] if not store.has_model(other.key)} & listed
        others = {job.key, *(key for cell in cells for key in cell.peers)} & earlier
        awaited = frozenset(start | others)
        # A plugin's certificate is loaded where it is judged, so its cells are kept apart from the others.
        foreign = [cell for cell in cells if proof_sources([cell])]
        parts = [[cell for cell in cells if cell not in foreign], *([cell] for cell in foreign)]
        parts = [part for part in parts if part] or [[]]
        items.append(_Item(job, parts[0], awaited))
        items += [_Item(job, part, awaited | {job.key}) for part in parts[1:]]
        earlier.add(job.key)
    return items


@dataclass
class _Worker:
    """A worker process and what it is at.

    Attributes:
        child: The process.
        job: The job that it was handed, or None while it waits.
        left: The cells of it that have no record yet.
        cell: Key of the cell that it is at; empty in training.
        since: When that began; infinite while the process starts.
        helper: The process that runs plugins for it, or None.
        verdict: How the helper ended, or empty.
        alone: Whether nothing else is done meanwhile.
    """

    child: Child
    job: Job | None = None
    left: list[Cell] = field(default_factory=list)
    cell: str = ""
    since: float = math.inf
    helper: Child | None = None
    verdict: str = ""
    alone: bool = False

    def end_helper(self) -> None:
        """End the helper, if there is one."""
        if self.helper is not None:
            self.helper.end()
        self.helper, self.verdict = None, ""

    def end(self) -> None:
        """End the process and its helper."""
        self.end_helper()
        self.child.end()


@dataclass
class _Run:
    """What is waiting, what is being done, and by whom."""

    plan: Plan
    waiting: list[_Item]
    unfinished: set[str]
    threads: int
    tell: Tell
    timeout: float
    facts: Facts
    pool: list[_Worker] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan, work: Work, threads: int, tell: Tell, timeout: float) -> _Run:
        metrics = plan.registry.entries("metric").values()
        facts = Facts(
            tuple(plugin.label for plugin in plan.registry.plugins()),
            metrics_digest(plan.registry),
            any(entry.source is not None for entry in metrics),
        )
        return cls(plan, _items(plan, work), {job.key for job, _ in work}, threads, tell, timeout, facts)

    @property
    def busy(self) -> list[_Worker]:
        """The workers that have something to do."""
        return [worker for worker in self.pool if worker.job is not None]

    def hand_out(self, workers: int) -> None:
        """Hand what can be done to workers that wait, and to new ones."""
        for item in list(self.waiting):
            if len(self.busy) == workers or any(worker.alone for worker in self.busy):
                return
            if not self.unfinished & item.awaited and not (item.alone and self.busy):
                self.waiting.remove(item)
                self._hand(item)

    def _hand(self, item: _Item) -> None:
        job, cells = item.job, item.cells
        loaded = frozenset(judge_sources(self.plan, job, cells))
        idle = next((worker for worker in self.pool if worker.job is None and worker.child.process.is_alive()), None)
        if loaded or idle is None:
            # Where plugins are loaded, nothing but the cell at hand is judged.
            worker = _Worker(self._start(work, self.threads, apart=bool(loaded)))
            self.pool.append(worker)
        else:
            worker = idle
        worker.job, worker.left, worker.cell, worker.since = job, list(cells), "", math.inf
        worker.alone = item.alone
        portion = portion_to_judge(self.plan, job, cells)
        # One that died is found dead where it is listened to.
        with contextlib.suppress(OSError):
            worker.child.connection.send(Task(portion, tuple(cell.key for cell in cells), loaded, self.facts))

    def listen(self) -> None:
        """Wait until a worker says something or ends, a moment at the most."""
        waited: dict[object, _Worker] = {}
        for worker in self.busy:
            waited |= {worker.child.connection: worker, worker.child.process.sentinel: worker}
            if worker.helper is not None and not worker.verdict:
                waited[worker.helper.process.sentinel] = worker
        ready: Any = multiprocessing.connection.wait(waited, _MOMENT)  # type: ignore[arg-type]
        for worker in {id(waited[item]): waited[item] for item in ready}.values():
            self._attend(worker)

    def _attend(self, worker: _Worker) -> None:
        while worker.job is not None and worker.child.connection.poll():
            try:
                message = worker.child.connection.recv()
            except Exception:  # nothing more comes, or nothing that a worker of ours sends
                self._lose(worker)
                return
            self._take(worker, message)
        if worker.job is not None and not worker.child.process.is_alive():
            self._lose(worker)
        elif worker.helper is not None and not worker.verdict and not worker.helper.process.is_alive():
            # What it left behind may keep the pipe open.
            worker.verdict = worker.helper.death()

    def _take(self, worker: _Worker, message: object) -> None:
        match message:
            case Progress():
                if message.finished is not None:
                    worker.left = [cell for cell in worker.left if cell.key != message.cell]
                    worker.end_helper()
                # An epoch is as long as a cell; batches of a cell are not.
                if message.cell != worker.cell or not message.cell:
                    worker.cell, worker.since = message.cell, time.monotonic()
                self.tell(message)
            case Begun():
                worker.since = time.monotonic()
            case Wanted():
                worker.end_helper()
                worker.helper = self._helper(worker, message)
                with contextlib.suppress(OSError):
                    send_handle(worker.child.connection, worker.helper.connection.fileno(), worker.child.pid)
            case Gone():
                assert worker.helper is not None
                with contextlib.suppress(OSError):
                    worker.child.connection.send(worker.verdict or worker.helper.death())
                worker.end_helper()
            case Over():
                if message.error:
                    raise StoreError(message.error)
                self._release(worker)
                if worker.child.apart:
                    self._remove(worker)

    def _helper(self, worker: _Worker, wanted: Wanted) -> Child:
        job = worker.job
        assert job is not None
        if wanted.what == "measure":
            return self._start(measure_outcomes, self.plan.registry, apart=True)
        cell = next(cell for cell in worker.left if cell.key == worker.cell)
        return self._start(attack, portion_to_attack(self.plan, job, cell), self.threads, apart=True)

    def _start(self, target: Callable[..., None], *arguments: object, apart: bool) -> Child:
        return Child.start(target, *arguments, device=self.plan.device, apart=apart)

    def end_overdue(self) -> None:
        """End what takes longer than it may."""
        for worker in self.busy:
            if not worker.cell and not worker.child.apart:
                # Training without plugins ends, however long it takes.
                continue
            seconds = time.monotonic() - worker.since
            reason = f"time limit: not done after {self.timeout:g} seconds (--cell-timeout)"
            if worker.helper is not None and not worker.verdict and seconds > self.timeout:
                worker.verdict = reason
                worker.helper.end()
            elif seconds > self.timeout + (_GRACE if worker.helper is not None else 0):
                self._bury(worker, reason)

    def _lose(self, worker: _Worker) -> None:
        """Go on without a worker that has ended."""
        reason = worker.child.death()
        if worker.child.unknown and not worker.alone:
            # Any process at work may have killed the one that starts them all: each is tried again by itself, and the
            # next one to be started brings a new one.
            assert worker.job is not None
            self._remove(worker)
            self.waiting.append(_Item(worker.job, worker.left, alone=True))
        else:
            self._bury(worker, reason)

    def _bury(self, worker: _Worker, reason: str) -> None:
        """Write down what a dead worker was at, and have another one do the rest."""
        job, store = worker.job, Store(self.plan.request.out)
        assert job is not None
        self._remove(worker)
        facts = provenance_of("cpu", self.facts.plugins, job)
        # In training, and while a model is loaded, all of the job's cells are at stake.
        lost = [cell for cell in worker.left if worker.cell in ("", cell.key)]
        if not worker.left:
            warn(f"{job.label}: {reason}")
        for cell in lost:
            worker.left.remove(cell)
            about = reason if worker.cell else f"{reason} in training, or while the model was loaded"
            try:
                with store.lease("cells", cell.key, _MOMENT):
                    record = without_outcome(store, cell, "failed", about, facts)
            except Busy:  # another run is at it, and writes down what comes of it
                record = without_result(cell, "failed", about, facts)
            self.tell(Progress(job.label, cell.condition.label, finished=record, cell=cell.key))
        self._release(worker)

    def _release(self, worker: _Worker) -> None:
        assert worker.job is not None
        worker.end_helper()
        if worker.left:
            self.waiting.insert(0, _Item(worker.job, worker.left))
        else:
            self.unfinished.discard(worker.job.key)
        worker.job, worker.left = None, []

    def _remove(self, worker: _Worker) -> None:
        worker.end()
        self.pool.remove(worker)
