"""How far a run is: which of its cells are finished, what is being done, how much of its passes is behind."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robbench.planning.cost_estimate import weights
from robbench.results.run_states import Doing, RunState, announced
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.execution.graph import ToDo
    from robbench.execution.jobs import Progress, Tell
    from robbench.planning.plan import Plan


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        left: By label of the model, how many of its cells are to be done.
        weights: Weighted passes of everything that is to be done: by label training, by key cells.
        to_do: How many cells were to be done in the beginning.
        doing: By label of the model, what was last told of those that are worked on.
        since: When that activity began, in seconds of the epoch.
        finished: How many cells are finished.
        failed: How many of those failed.
        behind: Weighted passes that are behind.
    """

    left: dict[str, int]
    weights: dict[str, float]
    to_do: int = 0
    doing: dict[str, Progress] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    finished: int = 0
    failed: int = 0
    behind: float = 0.0
    _total: float = 0.0
    _shares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, work: ToDo, store: Store) -> Tally:
        """Nothing of some work is done yet."""
        made = cls({}, {})
        for job, cells in work:
            # A job comes again for its cells that work through other models.
            made.left[job.label] = made.left.get(job.label, 0) + len(cells)
            made.weights[job.label], each = weights(job, cells, store)
            made.weights |= each
        made.to_do, made._total = sum(made.left.values()), sum(made.weights.values())
        return made

    def count(self, event: Progress) -> None:
        """Take down what happened: of models how far they are trained, of cells whether they are finished."""
        record = event.finished
        if record is not None:
            self.finished += 1
            self.failed += record.status == "failed"
            self.left[event.job] -= 1
            self._passed(event.cell, 1.0)
        if event.cell:
            self._passed(event.job, 1.0)
        elif event.of:
            self._passed(event.job, event.done / event.of)
        trained = not event.cell and event.of and event.done >= event.of
        if not self.left.get(event.job) and (record is not None or trained):
            self.doing.pop(event.job, None)
        elif record is None:
            before = self.doing.get(event.job)
            if before is None or before.activity != event.activity:
                self.since[event.job] = time.time()
            self.doing[event.job] = event

    def seconds_left(self, elapsed: float) -> float | None:
        """A forecast from how long it took so far; None while nothing is behind."""
        return elapsed * (self._total / self.behind - 1) if self.behind else None

    def _passed(self, name: str, share: float) -> None:
        self.behind += self.weights.get(name, 0.0) * (share - self._shares.get(name, 0.0))
        self._shares[name] = share


@contextlib.contextmanager
def announcing(plan: Plan, work: ToDo, store: Store) -> Iterator[Tell]:
    """Tell other shells how far a run is; gives what is to be called as it goes on. See ``robbench status``."""
    tally, began = Tally.of(work, store), time.time()

    def state() -> RunState:
        doing = [
            Doing(model=job, activity=event.activity, done=event.done, of=event.of, since=tally.since[job])
            for job, event in tally.doing.items()
        ]
        return RunState(
            grid=plan.name,
            host=platform.node(),
            pid=os.getpid(),
            began=began,
            cells=sum(len(job.cells) for job in plan.jobs),
            to_do=tally.to_do,
            finished=tally.finished,
            failed=tally.failed,
            seconds_left=tally.seconds_left(time.time() - began),
            doing=tuple(doing),
        )

    with announced(store.root, state) as tell:

        def count(event: Progress) -> None:
            tally.count(event)
            tell()

        yield count
