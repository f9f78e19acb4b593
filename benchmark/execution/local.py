"""Carrying out tasks on this machine, in worker processes that this one watches."""

from __future__ import annotations

import contextlib
import math
import multiprocessing.connection
import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import send_handle
from typing import Any

import torch

from robbench.core.device import named_devices
from robbench.core.registry import Registry
from robbench.execution.driver import drive
from robbench.execution.graph import ToDo
from robbench.execution.helpers import Gone, Wanted
from robbench.execution.jobs import Progress, Tell, carry_out
from robbench.execution.plugin_process import attack, measure_outcomes
from robbench.execution.processes import Child, prepare
from robbench.execution.tasks import Died, Hear, Needs, Over, Task
from robbench.execution.worker import Begun, work
from robbench.planning.plan import Plan

CELL_TIMEOUT = 24 * 3600.0
"""Seconds that one cell, or one epoch of training with plugins, may take."""
_MOMENT = 0.5
_GRACE = 30.0
"""Seconds for a worker to tell that the process that attacks for it was ended."""


def default_workers(device: str, devices: int = 0) -> int:
    """One on each accelerator; on a CPU one per core, four at the most."""
    return max(1, devices) if device != "cpu" else min(4, cores())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_locally(plan: Plan, work: ToDo, workers: int | None, tell: Tell, timeout: float = CELL_TIMEOUT) -> None:
    """Carry out the jobs in worker processes, each with its share of the cores; see ``drive``.

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
    _, numbers = named_devices(plan.request.device)
    count = workers or default_workers(plan.device, len(numbers))
    local = Local(plan.device, count, max(count, cores()), timeout, plan.registry, numbers or (None,))
    drive(plan, work, local, tell)


def run_here(plan: Plan, work: ToDo, tell: Tell) -> None:
    """Carry out the jobs in this process, as a plan with models must be that were handed over as objects.

    Plugins are not kept apart then, and nothing watches the time.

    Raises:
        StoreError: If results cannot be kept.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(cores())
    try:
        for job, cells in work:
            carry_out(plan, job, cells, tell)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@dataclass
class _Worker:
    """A worker process and what it is at.

    Attributes:
        child: The process.
        number: The CUDA device that it is on; None for whichever torch takes.
        task: The task that it was handed, or None while it waits.
        opened: Identifies the portion that it has open.
        cell: Key of the cell that it is at; empty in training, and while a model is loaded.
        since: When that began; infinite while the process starts.
        helper: The process that runs plugins for it, or None.
        verdict: How the helper ended, or empty.
        alone: Whether nothing else is done meanwhile.
    """

    child: Child
    number: int | None = None
    task: Task | None = None
    opened: str = ""
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
class Local:
    """Carries out tasks in processes of this machine. One that crashes or takes too long costs its own task.

    Attributes:
        device: Device type.
        workers: Number of worker processes that are busy at once.
        cpus: The cores that they share.
        timeout: Seconds that one cell, or one epoch of training with plugins, may take.
        registry: The metrics, and those of plugins among them.
        numbers: The CUDA devices that workers take turns on; None for whichever torch takes.
        pool: The worker processes.
        again: Tasks to be tried again with nothing else beside them.
    """

    device: str
    workers: int
    cpus: int
    timeout: float
    registry: Registry
    numbers: tuple[int | None, ...] = (None,)
    pool: list[_Worker] = field(default_factory=list)
    again: list[Task] = field(default_factory=list)

    @property
    def busy(self) -> list[_Worker]:
        """The workers that have something to do."""
        return [worker for worker in self.pool if worker.task is not None]

    def width(self) -> tuple[int, int]:
        """How many tasks are carried out at once, and how many cores they share."""
        return self.workers, self.cpus

    def takes(self, needs: Needs) -> bool:
        """Whether another task with such needs would be begun now."""
        busy = self.busy
        if self.again or len(busy) >= self.workers or any(worker.alone for worker in busy):
            return False
        return not busy or needs.cpus + sum(worker.task.needs.cpus for worker in busy if worker.task) <= self.cpus

    def submit(self, task: Task) -> None:
        """Begin a task, in a worker that has its model loaded where one waits."""
        self._hand(task)

    def _hand(self, task: Task, alone: bool = False) -> None:
        at = Counter(worker.number for worker in self.busy)
        number = min(self.numbers, key=lambda one: at[one])
        idle = [worker for worker in self.pool if worker.task is None and worker.child.process.is_alive()]
        idle = [worker for worker in idle if at[worker.number] == at[number]]
        idle.sort(key=lambda worker: worker.opened != task.digest)
        if task.loaded or not idle:
            # Where plugins are loaded, nothing but the step at hand is done.
            child = Child.start(work, device=self.device, apart=bool(task.loaded), number=number)
            worker = _Worker(child, number)
            self.pool.append(worker)
        else:
            worker = idle[0]
        handed = replace(task, attack=None, portion=None if worker.opened == task.digest else task.portion)
        worker.task, worker.opened, worker.alone = task, task.digest, alone
        worker.cell, worker.since = "", math.inf
        # One that died is found dead where it is listened to.
        with contextlib.suppress(OSError):
            worker.child.connection.send(handed)

    def listen(self, hear: Hear) -> None:
        """Hand on what workers say until one does, or a moment is over; end what takes too long."""
        if self.again and not self.busy:
            self._hand(self.again.pop(0), alone=True)
        waited: dict[object, _Worker] = {}
        for worker in self.busy:
            waited |= {worker.child.connection: worker, worker.child.process.sentinel: worker}
            if worker.helper is not None and not worker.verdict:
                waited[worker.helper.process.sentinel] = worker
        ready: Any = multiprocessing.connection.wait(waited, _MOMENT)  # type: ignore[arg-type]
        for worker in {id(waited[item]): waited[item] for item in ready}.values():
            self._attend(worker, hear)
        self._end_overdue(hear)

    def close(self) -> None:
        """End all processes."""
        for worker in self.pool:
            worker.end()
        self.pool.clear()

    def _attend(self, worker: _Worker, hear: Hear) -> None:
        while worker.task is not None and worker.child.connection.poll():
            try:
                message = worker.child.connection.recv()
            except Exception:  # nothing more comes, or nothing that a worker of ours sends
                self._lose(worker, hear)
                return
            self._take(worker, worker.task, message, hear)
        if worker.task is not None and not worker.child.process.is_alive():
            self._lose(worker, hear)
        elif worker.helper is not None and not worker.verdict and not worker.helper.process.is_alive():
            # What it left behind may keep the pipe open.
            worker.verdict = worker.helper.death()

    def _take(self, worker: _Worker, task: Task, message: object, hear: Hear) -> None:
        match message:
            case Begun():
                worker.since = time.monotonic()
            case Wanted():
                worker.end_helper()
                worker.helper = self._helper(task, message, worker.number)
                with contextlib.suppress(OSError):
                    send_handle(worker.child.connection, worker.helper.connection.fileno(), worker.child.pid)
            case Gone():
                assert worker.helper is not None
                with contextlib.suppress(OSError):
                    worker.child.connection.send(worker.verdict or worker.helper.death())
                worker.end_helper()
            case Over():
                self._release(worker)
                hear(task, message)
            case _:
                # An epoch is as long as a cell; batches of a cell are not.
                if isinstance(message, Progress) and (message.cell != worker.cell or not message.cell):
                    worker.cell, worker.since = message.cell, time.monotonic()
                hear(task, message)

    def _helper(self, task: Task, wanted: Wanted, number: int | None) -> Child:
        if wanted.what == "measure":
            return Child.start(measure_outcomes, self.registry, device=self.device, apart=True, number=number)
        return Child.start(attack, task.attack, task.needs.cpus, device=self.device, apart=True, number=number)

    def _end_overdue(self, hear: Hear) -> None:
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
                self._bury(worker, reason, hear)

    def _lose(self, worker: _Worker, hear: Hear) -> None:
        """Go on without a worker that has ended."""
        reason, task = worker.child.death(), worker.task
        if worker.child.unknown and not worker.alone and task is not None:
            # Any process at work may have killed the one that starts them all: each is tried again by itself, and the
            # next one to be started brings a new one.
            self._remove(worker)
            self.again.append(task)
        else:
            self._bury(worker, reason, hear)

    def _bury(self, worker: _Worker, reason: str, hear: Hear) -> None:
        task = worker.task
        assert task is not None
        self._remove(worker)
        hear(task, Died(reason, not worker.cell))

    def _release(self, worker: _Worker) -> None:
        worker.end_helper()
        worker.task = None
        if worker.child.apart:
            self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        worker.end()
        self.pool.remove(worker)
