"""What the commands do, apart from talking to people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from robbench.audit import cautions_of, examine, flags_of
from robbench.errors import RequestError
from robbench.records import Outcome, Record, digest
from robbench.store import Store

if TYPE_CHECKING:
    from robbench.executors.jobs import Tell
    from robbench.plan import Cell, Job, Plan

Work: TypeAlias = "list[tuple[Job, list[Cell]]]"


@dataclass(frozen=True)
class Boards:
    """What a run or a report wrote.

    Attributes:
        files: The boards' files, by board.
        cells: The records and outcomes that they rest on, by board.
        missing: How many of their cells were not run yet, by board.
    """

    files: dict[str, list[Path]]
    cells: dict[str, list[tuple[Record, Outcome | None]]]
    missing: dict[str, int]

    def failed(self) -> list[Record]:
        """The records of failed cells."""
        return [record for cells in self.cells.values() for record, _ in cells if record.status == "failed"]


def remaining(plan: Plan, store: Store) -> Work:
    """The jobs that have cells to be done, and those whose weights another of them needs; largest first.

    Cells that work through other models stand apart from their job's other cells, and come last.
    """
    work: Work = []
    late: Work = []
    by_key = {job.key: job for job in plan.jobs}
    for job in plan.jobs:
        cells = [cell for cell in job.cells if not store.finished(cell.key)]
        alone = [cell for cell in cells if not cell.peers]
        if alone:
            work.append((job, alone))
        if len(alone) < len(cells):
            late.append((job, [cell for cell in cells if cell.peers]))
    needed = {key for job, cells in late for cell in cells for key in (job.key, *cell.peers)}
    begun = {job.key for job, _ in work}
    work += [(by_key[key], []) for key in sorted(needed - begun) if not store.has_model(key)]
    listed = {job.key for job, _ in work}
    for job, cells in list(work):
        start = by_key.get(job.start) if job.start else None
        wanted = not cells or any(not cell.refusal for cell in cells)
        while start is not None and start.key not in listed and wanted:
            if not store.has_model(job.key) and not store.has_model(start.key):
                work.append((start, []))
                listed.add(start.key)
            start = by_key.get(start.start) if start.start else None
    return sorted(work, key=lambda item: -len(item[0].data.splits.train)) + late


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


def refresh(plan: Plan, store: Store) -> None:
    """Bring finished records up to date: the names by which cells are asked for now, and the metrics registered now.

    Raises:
        RequestError: If a metric fails.
        StoreError: If a record cannot be read or written.
    """
    from robbench.executors.jobs import explain
    from robbench.scoring import metrics_digest, scored

    wanted = metrics_digest(plan.registry)
    for _, cell in plan.cells:
        record = store.record(cell.key)
        if record is None:
            continue
        fresh = record.model_copy(update={"spec": cell.spec})
        if record.status == "done" and record.metrics_digest != wanted:
            outcome = store.outcome(record)
            assert outcome is not None
            try:
                fresh = scored(fresh, outcome, plan.registry)
            except Exception as error:
                raise RequestError(f"a metric fails on finished cells: {explain(error)}") from error
        if fresh != record:
            store.write_cell(fresh, None, None)


def audited(store: Store, cells: Sequence[tuple[Record, Outcome | None]]) -> list[tuple[Record, Outcome | None]]:
    """The cells of a board with what the audit finds on its rows in their records, which are written where they change.

    Args:
        store: Where the records are kept.
        cells: Records with their outcomes, None unless done.

    Raises:
        StoreError: If a record cannot be written.
    """
    rows: dict[tuple[str, int], list[tuple[Record, Outcome]]] = {}
    for record, outcome in cells:
        if outcome is not None:
            rows.setdefault((record.spec.model_key, record.spec.seed), []).append((record, outcome))
    findings = [finding for row in rows.values() for finding in examine(row)]
    result = []
    for record, outcome in cells:
        marks = {"flags": flags_of(findings, record.key), "cautions": cautions_of(findings, record.key)}
        fresh = record.model_copy(update=marks)
        if fresh != record:
            store.write_cell(fresh, None, None)
        result.append((fresh, outcome))
    return result


def note_boards(plan: Plan, store: Store) -> dict[str, list[str]]:
    """Write down which cells the plan's boards are made of; returns their keys by board."""
    boards: dict[str, list[str]] = {}
    models: dict[str, dict[str, None]] = {}
    for job in plan.jobs:
        board = board_name(plan.name, job.data.choice.label)
        boards.setdefault(board, []).extend(cell.key for cell in job.cells)
        models.setdefault(board, {})[job.key] = None
    for board, cells in boards.items():
        store.note_board(board, plan.name, plan.title, cells, list(models[board]))
    return boards


def board_name(grid: str, dataset: str) -> str:
    """The directory of a board: grid and data set; what does not suit a file name is replaced by a short hash."""
    name = f"{grid}-{dataset}"
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:80]
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def write_boards(store: Store, boards: Collection[str] | None = None) -> Boards:
    """Make boards from records and outcomes alone.

    Args:
        store: The store.
        boards: Their names; all that the store knows of where it is None.

    Raises:
        StoreError: If a cell is damaged or a board cannot be written.
    """
    from robbench.leaderboards import write_board

    files: dict[str, list[Path]] = {}
    found: dict[str, list[tuple[Record, Outcome | None]]] = {}
    missing: dict[str, int] = {}
    for board, note in store.boards().items():
        if boards is not None and board not in boards:
            continue
        records = [record for record in map(store.record, note["cells"]) if record is not None]
        missing[board] = len(note["cells"]) - len(records)
        if records:
            found[board] = audited(store, [(record, store.outcome(record)) for record in records])
            folder = store.root / "leaderboards" / board
            files[board] = write_board(folder, str(note["title"]), str(note["grid"]), found[board])
    return Boards(files, found, missing)
