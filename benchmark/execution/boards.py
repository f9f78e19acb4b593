"""The boards of a store: noted before a run, and made from records and outcomes alone after it."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robbench.core.atomic_io import file_name, write_atomically
from robbench.evaluation.audit import marked
from robbench.planning.grid import ranking_size
from robbench.results.schema import BoardNote, Outcome, Record, Reference, digest
from robbench.results.store import Store

if TYPE_CHECKING:
    from robbench.core.registry import Registry
    from robbench.planning.plan import Data, Job, Plan

EXHIBITED = 8
"""Training images of each class that are kept for figures."""


@dataclass(frozen=True)
class Boards:
    """What a run or a report wrote.

    Attributes:
        files: The boards' files, by board.
        cells: The records and outcomes that they rest on, by board.
        missing: How many of their cells were not run yet, by board.
        rank_by: The size of change that the grid says to rank by, by board.
    """

    files: dict[str, list[Path]]
    cells: dict[str, list[tuple[Record, Outcome | None]]]
    missing: dict[str, int]
    rank_by: dict[str, str]

    def failed(self) -> list[Record]:
        """The records of failed cells."""
        return [record for cells in self.cells.values() for record, _ in cells if record.status == "failed"]


def note_boards(plan: Plan, store: Store) -> dict[str, list[str]]:
    """Write down which cells the plan's boards are made of; returns their keys by board."""
    boards: dict[str, list[Job]] = {}
    for job in plan.jobs:
        boards.setdefault(board_name(plan.name, job.data.choice.label), []).append(job)
    keys = {board: [cell.key for job in jobs for cell in job.cells] for board, jobs in boards.items()}
    for board, jobs in boards.items():
        data = jobs[0].data
        note = BoardNote(
            grid=plan.name,
            title=plan.grid.title,
            about=plan.grid.about,
            references=tuple(
                Reference(**found.model_dump(exclude={"dataset"}))
                for found in plan.grid.references
                if found.dataset == data.choice.label
            ),
            differences=plan.grid.differences.get(data.choice.label, ""),
            rank_by=ranking_size(plan.grid.rank_by, data.spec.reference),
        )
        models = list(dict.fromkeys(job.key for job in jobs))
        store.note_board(board, note, keys[board], models, exhibit(data, store))
    return keys


def board_name(grid: str, dataset: str) -> str:
    """The directory of a board: grid and data set; what does not suit a file name is replaced by a short hash."""
    return file_name(f"{grid}-{dataset}")


def exhibit(data: Data, store: Store) -> str:
    """Keep some training images of each class for figures; returns their name under ``exhibits``."""
    name = digest([data.decoded.fingerprint, data.splits.train.tolist(), EXHIBITED])[:16]
    path = store.root / "exhibits" / f"{name}.npz"
    if not path.is_file():
        splits = data.splits
        labels = splits.labels[splits.train]
        picked = np.concatenate([splits.train[labels == c][:EXHIBITED] for c in range(data.num_classes)])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=data.decoded.images[picked], labels=splits.labels[picked])
        write_atomically(path, buffer.getvalue())
    return name


def write_boards(store: Store, boards: Collection[str] | None = None, registry: Registry | None = None) -> Boards:
    """Make boards from records and outcomes alone.

    Args:
        store: The store.
        boards: Their names; all that the store knows of where it is None.
        registry: The known figures; the built-in ones where it is None.

    Raises:
        StoreError: If a cell is damaged or a board cannot be written.
    """
    from robbench.leaderboards import board_data, write_files
    from robbench.leaderboards.artifact_reader import read_materials
    from robbench.leaderboards.html import IndexEntry, index_page
    from robbench.leaderboards.plots import draw

    files: dict[str, list[Path]] = {}
    found: dict[str, list[tuple[Record, Outcome | None]]] = {}
    missing: dict[str, int] = {}
    rank_by: dict[str, str] = {}
    for board, note in store.boards().items():
        if boards is not None and board not in boards:
            continue
        records = [record for record in map(store.record, note["cells"]) if record is not None]
        missing[board] = len(note["cells"]) - len(records)
        if records:
            found[board] = audited(store, [(record, store.outcome(record)) for record in records])
            folder = store.root / "leaderboards" / board
            shown = BoardNote.model_validate({name: note[name] for name in BoardNote.model_fields if name in note})
            rank_by[board] = shown.rank_by
            made = board_data(shown.title, shown.grid, found[board], shown.rank_by)
            materials = read_materials(store, note.get("exhibit"), found[board])
            pictures = draw(folder, made, found[board], materials, registry)
            files[board] = write_files(folder, made, shown, found[board], pictures)
    if files:
        made_before = [folder for name in store.boards() if (folder := store.root / "leaderboards" / name).is_dir()]
        entries = [IndexEntry.read(folder) for folder in made_before]
        write_atomically(store.root / "leaderboards" / "index.html", index_page(entries))
    return Boards(files, found, missing, rank_by)


def audited(store: Store, cells: Sequence[tuple[Record, Outcome | None]]) -> list[tuple[Record, Outcome | None]]:
    """The cells of a board with the audit's flags on its rows in their records, which are written where they change.

    Args:
        store: Where the records are kept.
        cells: Records with their outcomes, None unless done.

    Raises:
        StoreError: If a record cannot be written.
    """
    result = marked(cells)
    for (before, _), (after, _) in zip(cells, result, strict=True):
        if after != before:
            store.write_cell(after, None)
    return result
