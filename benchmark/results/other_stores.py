"""Finished work of other stores: verified as one's own, copied with its provenance, and nothing written there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import make_way
from robbench.core.errors import Damaged, StoreError, warn
from robbench.core.lease import Busy
from robbench.planning.plan import Cell, Job, Plan, TrainedJob
from robbench.results.record_keys import check_keys
from robbench.results.schema import CellResult
from robbench.results.store import (
    DIVERGED,
    EMBEDDINGS,
    EXAMPLES,
    HISTORY,
    IMAGES,
    MODEL,
    OUTCOME,
    RECORD,
    WEIGHTS,
    Store,
)
from robbench.results.store_index import StoreIndex
from robbench.results.verification import CleanPredictions, outcome_fault

_PAUSE = 1.0
"""Seconds after which entries are read again that did not fit together: somebody may be writing them."""
_NAMED = 5


@dataclass
class Taken:
    """What was taken from another store.

    Attributes:
        source: The store.
        cells: The number of its cells that were copied.
        models: That of its models.
        skipped: Why some were not, a line each.
    """

    source: Store
    cells: int = 0
    models: int = 0
    skipped: list[str] = field(default_factory=list)

    def tell(self) -> None:
        """Tell the user, the first of what was skipped line by line."""
        for line in self.skipped[:_NAMED]:
            warn(line)
        if len(self.skipped) > _NAMED:
            warn(f"{self.source.root}: {len(self.skipped) - _NAMED} more were not taken")
        warn(f"{self.source.root}: {self.cells} finished cells and {self.models} models were taken over")


def take_over(plan: Plan, index: StoreIndex, sources: Sequence[Path]) -> list[Taken]:
    """Copy what a plan needs and other stores have finished; what the own store has finished stays.

    An entry is copied aside, verified there by its seals and its key, and renamed into its place. Cells of one model
    rest on one training: where the own store or an earlier source has trained it or its start otherwise, nothing of it
    is taken from a later one.

    Args:
        plan: The plan.
        index: The index of the own store, which the caller holds.
        sources: The other stores, the first of which comes first.

    Raises:
        StoreError: If the own store cannot be written.
    """
    found = []
    for place in sources:
        taken = Taken(Store(place))
        with tempfile.TemporaryDirectory(prefix=".taken-", suffix=".tmp", dir=index.store.root) as name:
            taking = _Taking(plan, index, Store(Path(name)), taken)
            for job in plan.jobs:
                taking.take(job)
            if taken.skipped:
                time.sleep(_PAUSE)
                taken.skipped.clear()
                for job in plan.jobs:
                    taking.take(job)
        found.append(taken)
    return found


@dataclass
class _Taking:
    """Taking from one store.

    Attributes:
        plan: What is needed.
        index: The index of the own store.
        staged: Where copies are verified.
        taken: What was taken.
        apart: Keys of models that are not the own ones there.
    """

    plan: Plan
    index: StoreIndex
    staged: Store
    taken: Taken
    apart: set[str] = field(default_factory=set)

    @property
    def store(self) -> Store:
        """The own store."""
        return self.index.store

    def take(self, job: Job) -> None:
        """Take a model and its cells, as far as they are wanted and there."""
        source = self.taken.source
        reason = self._other_training(job)
        model = isinstance(job, TrainedJob) and os.path.isdir(source.model_dir(job.key))
        model = model and not self.index.has_model(job.key) and not self.store.diverged(job.key)
        cells = [cell for cell in job.cells if not cell.refusal and os.path.isdir(source.cell_dir(cell.key))]
        cells = [cell for cell in cells if not self.index.has_cell(cell.key, cell.condition.keeps)]
        if not reason:
            cells = [cell for cell in cells if self._copied_cell(cell)]
            names = (WEIGHTS, HISTORY, EMBEDDINGS, MODEL, DIVERGED)
            model = model and self._copied("models", job.key, names, partial(self._is_trained, job.key))
            reason = self._other_predictions(job, cells) or self._to_train(job, cells, model)
        if reason:
            self.apart.add(job.key)
            if model or cells:
                self.taken.skipped.append(f"{source.root}: {job.label} is left out: {reason}")
            return
        # Without a cell to compare, nobody knows whether it is the model of the own cells.
        if model and (cells or not any(self.store.done(cell.key) for cell in job.cells)):
            self.taken.models += self._placed("models", job.key)
        for cell in cells:
            self.taken.cells += self._fits(cell) and self._placed("cells", cell.key)

    # --- copies

    def _copied_cell(self, cell: Cell) -> bool:
        images = {IMAGES}.intersection(cell.condition.keeps)
        names = (OUTCOME, EXAMPLES, EMBEDDINGS, *images, RECORD)
        return self._copied("cells", cell.key, names, partial(self._is_finished, cell))

    def _copied(self, kind: str, key: str, names: Sequence[str], verified: Callable[[], bool]) -> bool:
        """Copy an entry; whether it is complete and whole."""
        source = self.taken.source
        self.staged.remove(kind, key)
        try:
            for name in names:
                source.copy(source.root / kind / key / name, self.staged)
        except Damaged as error:
            self._skip(error)
            return False
        try:
            return verified()
        except StoreError as error:
            self._skip(error)
            return False

    def _skip(self, error: StoreError) -> None:
        line = f"{error.path} is damaged: {error.reason}; it is not taken" if isinstance(error, Damaged) else str(error)
        self.taken.skipped.append(line.replace(str(self.staged.root), str(self.taken.source.root)))

    def _is_finished(self, cell: Cell) -> bool:
        if not self.staged.check_cell(cell.key, cell.condition.keeps):
            return False
        record, outcome = self._result(cell)
        path = self.staged.cell_dir(cell.key) / RECORD
        check_keys([(record, outcome)], lambda key: str(path))
        fault = outcome_fault(record, outcome) if outcome is not None else None
        if fault:
            raise Damaged(path, fault)
        return True

    def _is_trained(self, key: str) -> bool:
        self.staged.check_embeddings(key)
        return self.staged.check_model(key) or self.staged.diverged(key)

    def _result(self, cell: Cell) -> CellResult:
        record = self.staged.record(cell.key)
        assert record is not None
        return record, self.staged.outcome(record)

    def _placed(self, kind: str, key: str) -> bool:
        """Move a copy into its place, unless somebody else is at that."""
        place = self.store.root / kind / key
        try:
            with self.store.lease(kind, key, 0):
                make_way(place / RECORD)
                self.store.remove(kind, key)
                (self.staged.root / kind / key).rename(place)
        except Busy:
            return False
        except OSError as error:
            raise StoreError(f"cannot write {place}: {error.strerror or error}; what was finished is kept") from error
        return True

    # --- whether they belong together

    def _other_training(self, job: Job) -> str:
        if self.apart.intersection(start.key for start in self.plan.starts(job)):
            return "it starts from a model that was trained otherwise there"
        infos = [_read(store, store.model_dir(job.key) / MODEL) for store in self._both]
        hashes = {info.get("weights_sha256") for info in infos if info}
        return "its weights are others there" if len(hashes) > 1 else ""

    def _other_predictions(self, job: Job, cells: Sequence[Cell]) -> str:
        known = CleanPredictions()
        own = [record for cell in job.cells if cells and (record := self.store.done(cell.key)) is not None]
        for record, outcome in [*((record, self.store.outcome(record)) for record in own), *map(self._result, cells)]:
            if outcome is not None:
                if known.against(record, outcome) is not None:
                    return "its model predicts differently there"
                known.add(record, outcome)
        return ""

    def _to_train(self, job: Job, cells: Sequence[Cell], model: bool) -> str:
        there = model or self.index.has_model(job.key) or self.store.diverged(job.key)
        if there or not cells or not isinstance(job, TrainedJob):
            return ""
        done = {cell.key for cell in cells} | {cell.key for cell in job.cells if cell.refusal}
        left = (cell for cell in job.cells if cell.key not in done)
        if all(self.index.has_cell(cell.key, cell.condition.keeps) for cell in left):
            return ""
        return "its model is not there, and must be trained for what is left to do"

    def _fits(self, cell: Cell) -> bool:
        """Whether all that a cell rests on is here what it is there, and its own outcome, where there is one."""
        own = self.store.done(cell.key)
        if own is not None and own.outcome_sha256 != self._result(cell)[0].outcome_sha256:
            return False
        results = ([_read(store, store.cell_dir(key) / RECORD) for store in self._both] for key in cell.needs)
        same = all(mine and theirs and mine["outcome_sha256"] == theirs["outcome_sha256"] for mine, theirs in results)
        return same and not self.apart.intersection(cell.peers)

    @property
    def _both(self) -> tuple[Store, Store]:
        return self.store, self.taken.source


def _read(store: Store, path: Path) -> dict[str, Any] | None:
    try:
        return store.read(path)
    except Damaged:
        return None
