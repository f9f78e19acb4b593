"""Driving a run: hands out what can be done, and is the only one that writes to the store."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robbench.core.errors import StoreError, warn
from robbench.core.lease import PATIENCE, POLL, Busy
from robbench.data.lazy_images import LazyImages
from robbench.evaluation.scoring import metrics_digest, without_result
from robbench.execution.graph import Name, Pending, RowState, ToDo, graph
from robbench.execution.jobs import Progress, Tell, keep, keep_embeddings, told, without_model
from robbench.execution.portion import (
    Portion,
    attacked_elsewhere,
    judge_sources,
    portion_to_attack,
    portion_to_judge,
    proof_sources,
)
from robbench.execution.ready import provenance_of
from robbench.execution.tasks import (
    Died,
    Executor,
    Facts,
    Failure,
    Judged,
    Needs,
    Over,
    Predicted,
    Task,
    Vanished,
    Written,
)
from robbench.planning.plan import Cell, Job, Plan
from robbench.results.store import EMBEDDINGS, OUTCOME, RECORD, Store

TRIES = 5
"""Machines that may be lost with a task before it is taken to be the reason."""


def drive(plan: Plan, work: ToDo, executor: Executor, tell: Tell) -> None:
    """Have everything carried out that is to be done, and write down what comes of it.

    Another run that is at a model or a cell is waited for, while others are done. A cell that costs its process ends as
    a failed record.

    Args:
        plan: The plan.
        work: Jobs with those of their cells that are to be done.
        executor: Who carries it out; it is closed in the end.
        tell: Called in this process as work goes on.

    Raises:
        StoreError: If results cannot be kept.
    """
    run = _Run.of(plan, work, executor, tell)
    try:
        while run.nodes:
            run.hand_out()
            if run.nodes:
                executor.listen(run.hear)
    finally:
        executor.close()
        for lease in run.leases.values():
            lease.close()


@dataclass
class _Run:
    """What is left of a run.

    Attributes:
        nodes: What is not over.
        ready: What can be begun, as a heap of ranks and names.
        elsewhere: What another run is at, and since when it is waited for.
        aside: What of that is to be tried again.
        leases: Those that are held.
    """

    plan: Plan
    store: Store
    executor: Executor
    tell: Tell
    facts: Facts
    nodes: dict[Name, Pending]
    threads: tuple[int, int]
    ready: list[tuple[tuple[float, ...], Name]] = field(default_factory=list)
    elsewhere: dict[Name, float] = field(default_factory=dict)
    aside: list[Name] = field(default_factory=list)
    leases: dict[Name, ExitStack] = field(default_factory=dict)
    looked: float = 0.0
    warned: bool = False

    @classmethod
    def of(cls, plan: Plan, work: ToDo, executor: Executor, tell: Tell) -> _Run:
        metrics = plan.registry.entries("metric").values()
        facts = Facts(
            tuple(plugin.label for plugin in plan.registry.plugins()),
            metrics_digest(plan.registry),
            any(entry.source is not None for entry in metrics),
        )
        store = Store(plan.request.out)
        nodes = graph(plan, work, store)
        workers, cores = executor.width()
        rows, cells = len(plan.jobs), sum(not cell.refusal for _, cell in plan.cells)
        # Where few tasks can go on at once, each has more of the cores. By the plan and not by what is left of it: sums
        # round by the number of threads, and a run that goes on is to come to what it would have come to.
        threads = tuple(max(1, cores // max(1, min(workers, count))) for count in (rows, cells))
        run = cls(plan, store, executor, tell, facts, nodes, (threads[0], threads[1]))
        for node in nodes.values():
            run._push(node)
        return run

    def _push(self, node: Pending) -> None:
        if not node.waits:
            heapq.heappush(self.ready, (node.rank, node.name))

    def hand_out(self) -> None:
        """Begin what can be begun."""
        self._look_again()
        while self.ready:
            node = self.nodes[self.ready[0][1]]
            if not self.executor.takes(self._needs(node)):
                return
            heapq.heappop(self.ready)
            if node.name not in self.leases and not self._lease(node):
                self.elsewhere.setdefault(node.name, time.monotonic())
                self.aside.append(node.name)
            elif not self._finished(node):
                self.executor.submit(self._task(node))

    def _look_again(self) -> None:
        """Try again, now and then, what another run was at."""
        now = time.monotonic()
        if not self.aside or now < self.looked + POLL:
            return
        self.looked = now
        name, since = min(self.elsewhere.items(), key=lambda item: item[1])
        if now > since + PATIENCE and not self.warned:
            self.warned = True
            warn(f"waiting for another robbench, which holds {self.store.root / _kind(name) / name[1]}")
        for name in self.aside:
            self._push(self.nodes[name])
        self.aside.clear()

    def _needs(self, node: Pending) -> Needs:
        return Needs(self.threads[node.cell is not None], int(self.plan.device == "cuda"))

    def _lease(self, node: Pending) -> bool:
        """Become the only one to write what comes of a step; False where another run is."""
        if node.name[0] != "predict":
            stack = ExitStack()
            try:
                stack.enter_context(self.store.lease(_kind(node.name), node.name[1], 0))
            except Busy:
                return False
            self.leases[node.name] = stack
        self.elsewhere.pop(node.name, None)
        return True

    def _finished(self, node: Pending) -> bool:
        """End a step at once if nothing is to be done in it."""
        row, cell, store = node.row, node.cell, self.store
        if cell is not None:
            if store.finished(cell.key, cell.condition.keeps):
                # Another run has done it since this one looked.
                self.tell(told(row.job, cell, store.record(cell.key)))
                return self._end(node)
            if cell.refusal is not None or row.failure is not None:
                judged = without_model(row.job, cell, row.failure, self._provenance(row.job))
                assert judged is not None
                self._keep(node, cell, judged)
                return self._end(node)
        elif node.name[0] == "train":
            if store.has_model(row.job.key):
                return self._end(node)
        elif row.failure is not None:
            return self._end(node)
        else:
            store.drop_damaged(store.model_dir(row.job.key) / EMBEDDINGS)
        return False

    def _end(self, node: Pending) -> bool:
        del self.nodes[node.name]
        lease = self.leases.pop(node.name, None)
        if lease is not None:
            lease.close()
        for name in node.blocks:
            waiting = self.nodes[name]
            waiting.waits.discard(node.name)
            self._push(waiting)
        if not any(("judge", cell.key) in self.nodes for cell in node.row.cells):
            node.row.portions.clear()
        return True

    def _provenance(self, job: Job) -> dict[str, Any]:
        return provenance_of("cpu", self.facts.plugins, job)

    def _task(self, node: Pending) -> Task:
        row, cell, plan = node.row, node.cell, self.plan
        portion, loaded = self._portion(row, cell)
        attack = portion_to_attack(plan, row.job, cell) if cell and attacked_elsewhere(cell) else None
        return Task(
            *node.name,
            portion,
            portion.digest,
            self._needs(node),
            self.facts,
            loaded,
            row.asked,
            row.predicted if cell else None,
            attack,
            tuple(self._reads(row.job, cell)),
        )

    def _portion(self, row: RowState, cell: Cell | None) -> tuple[Portion, frozenset[str]]:
        """What a step is handed of the plan; cells that need the same of it are handed the same."""
        through = cell.peers if cell and not attacked_elsewhere(cell) else ()
        foreign = cell.key if cell and proof_sources([cell]) else ""
        own = [cell] if cell and (through or foreign) else []
        if (through, foreign) not in row.portions:
            portion = portion_to_judge(self.plan, row.job, own)
            row.portions[through, foreign] = portion, frozenset(judge_sources(self.plan, row.job, own))
        return row.portions[through, foreign]

    def _reads(self, job: Job, cell: Cell | None) -> Iterator[str]:
        """What a step reads of the store: data, models, and the cells that a cell rests on."""
        peers = [other for other in self.plan.jobs if cell and other.key in cell.peers]
        for model in (job, *job.members, *self.plan.starts(job)[-1:], *peers):
            yield f"models/{model.key}"
            yield from (f"models/{member.key}" for member in model.members)
        for key in cell.needs if cell else ():
            yield from (f"cells/{key}/{name}" for name in (RECORD, OUTCOME))
        decoded = job.data.decoded
        parts = [decoded, decoded.images] if isinstance(decoded.images, LazyImages) else [decoded]
        mapped = (array for part in parts for array in vars(part).values() if isinstance(array, np.memmap))
        for folder in {Path(str(array.filename)).parent for array in mapped}:
            if folder.is_relative_to(self.store.root):
                yield folder.relative_to(self.store.root).as_posix()

    def hear(self, task: Task, message: object) -> None:
        """Take what came of a task."""
        node = self.nodes[task.step, task.key]
        row, cell = node.row, node.cell
        match message:
            case Progress():
                self.tell(message)
            case Written():
                getattr(self.store, message.method)(task.key, *message.content)
            case Predicted():
                keep_embeddings(self.store, row.job, message)
                row.predicted = replace(message, embeddings=None)
            case Failure():
                self._fail(row, message)
            case Judged() if cell is not None:
                self._keep(node, cell, message)
            case Died():
                self._bury(node, message)
                self._end(node)
            case Vanished():
                self._try_again(node, message)
            case Over():
                if message.error:
                    raise StoreError(message.error)
                self._end(node)

    def _keep(self, node: Pending, cell: Cell, judged: Judged) -> None:
        node.kept = True
        self.tell(told(node.row.job, cell, keep(self.store, cell, judged), judged.trace))

    def _fail(self, row: RowState, failure: Failure) -> None:
        row.failure = failure
        if not row.cells:
            warn(f"{row.job.label}: {failure.reason}")

    def _bury(self, node: Pending, lost: Died) -> None:
        """Write down what a process was at that is gone."""
        about = f"{lost.reason} in training, or while the model was loaded" if lost.loading else lost.reason
        if node.cell is None:
            self._fail(node.row, Failure("failed", about))
        elif not node.kept:
            record = without_result(node.cell, "failed", about, self._provenance(node.row.job))
            self._keep(node, node.cell, Judged(record))

    def _try_again(self, node: Pending, vanished: Vanished) -> None:
        node.tries += 1
        if node.kept:
            self._end(node)
        elif node.tries < TRIES:
            self._push(node)
        else:
            self._bury(node, Died(f"crash: {vanished.reason}, {node.tries} times", node.cell is None))
            self._end(node)


def _kind(name: Name) -> str:
    return "cells" if name[0] == "judge" else "models"
