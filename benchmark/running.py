"""What the commands do, apart from talking to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robbench.executors.jobs import Tell, explain
from robbench.plan import Cell, Job, Plan
from robbench.records import Outcome, Record
from robbench.standing import standing
from robbench.store import Store

Work = list[tuple[Job, list[Cell]]]


@dataclass(frozen=True)
class Boards:
    """What a run or a report wrote.

    Attributes:
        files: The boards' files, by board.
        cells: The records and outcomes that they rest on, by board.
    """

    files: dict[str, list[Path]]
    cells: dict[str, list[tuple[Record, Outcome | None]]]

    def failed(self) -> list[Record]:
        """The records of failed cells."""
        return [record for cells in self.cells.values() for record, _ in cells if record.status == "failed"]


def remaining(plan: Plan, store: Store) -> Work:
    """The jobs that have cells to be done, and those whose weights another of them starts from; largest first."""
    work: Work = []
    for job in plan.jobs:
        cells = [cell for cell in job.cells if not store.finished(cell.key)]
        if cells:
            work.append((job, cells))
    by_key = {job.key: job for job in plan.jobs}
    listed = {job.key for job, _ in work}
    for job, cells in list(work):
        start = by_key.get(job.start) if job.start else None
        while start is not None and start.key not in listed and any(not cell.refusal for cell in cells):
            if not store.has_model(job.key) and not store.has_model(start.key):
                work.append((start, []))
                listed.add(start.key)
            start = by_key.get(start.start) if start.start else None
    return sorted(work, key=lambda item: -len(item[0].data.splits.train))


def forget(plan: Plan, store: Store) -> None:
    """Remove what the store holds of a plan."""
    for job in plan.jobs:
        store.remove("models", job.key)
        for cell in job.cells:
            store.remove("cells", cell.key)


def execute(plan: Plan, work: Work, workers: int, tell: Tell) -> None:
    """Carry out what is to be done.

    Raises:
        StoreError: If results cannot be kept.
    """
    from robbench.executors.local import run_locally

    if work:
        run_locally(plan, work, workers, tell)


def rescore(plan: Plan, store: Store) -> int:
    """Measure anew the cells whose records hold other metrics than are registered now; returns how many."""
    from robbench.scoring import metrics_digest, scored

    wanted, count = metrics_digest(plan.registry), 0
    for _, cell in plan.cells:
        record = store.record(cell.key)
        if record is None or record.status != "done" or record.metrics_digest == wanted:
            continue
        outcome = store.outcome(record)
        assert outcome is not None
        try:
            record = scored(record, outcome, plan.registry)
        except Exception as error:
            raise RequestError(f"a metric fails on finished cells: {explain(error)}") from error
        store.write_cell(record, None, None)
        count += 1
    return count


def board_name(grid: str, dataset: str) -> str:
    """The directory of a board: grid and data set, with what a file name cannot hold replaced."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in f"{grid}-{dataset}")


def note_boards(plan: Plan, store: Store) -> None:
    """Write down which cells the plan's boards are made of."""
    boards: dict[str, list[str]] = {}
    for job, cell in plan.cells:
        boards.setdefault(board_name(plan.name, job.data.choice.label), []).append(cell.key)
    store.write_manifest(plan.name, boards, plan.title, standing(plan.request))


def write_boards(store: Store, grids: Sequence[str] = ()) -> Boards:
    """Make the boards of grids that were run, from records and outcomes alone.

    Args:
        store: The store.
        grids: Their names; all that were run where none is given.

    Raises:
        StoreError: If a cell is damaged or a board cannot be written.
    """
    from robbench.leaderboards import write_board

    manifests = store.manifests()
    files: dict[str, list[Path]] = {}
    found: dict[str, list[tuple[Record, Outcome | None]]] = {}
    for grid, manifest in manifests.items():
        if grids and grid not in grids:
            continue
        for board, keys in manifest["boards"].items():
            records = [record for record in map(store.record, keys) if record is not None]
            if not records:
                continue
            cells = [(record, store.outcome(record)) for record in records]
            folder = store.root / "leaderboards" / board
            files[board] = write_board(folder, str(manifest["title"]), grid, cells)
            found[board] = cells
    return Boards(files, found)
