"""The boards of a store: noted before a run, and made from records and outcomes alone after it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robbench.core.atomic_io import file_name, write_atomically
from robbench.core.errors import StoreError, unless_damaged, warn
from robbench.evaluation.audit import marked
from robbench.results.schema import BoardNote, Outcome, Record, Reference, digest
from robbench.results.store import INDEX, Store

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
    """

    files: dict[str, list[Path]]
    cells: dict[str, list[tuple[Record, Outcome | None]]]
    missing: dict[str, int]

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
    path = store.exhibit(name)
    if unless_damaged(lambda: store.read_archive(path), None, "it is to be made again") is None:
        splits = data.splits
        labels = splits.labels[splits.train]
        picked = np.concatenate([splits.train[labels == c][:EXHIBITED] for c in range(data.num_classes)])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=data.decoded.images[picked], labels=splits.labels[picked])
        store.write_archive(path, buffer.getvalue())
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

    if unless_damaged(lambda: store.board_files(INDEX), None, "it is made again") is None:
        store.forget_files()
    files: dict[str, list[Path]] = {}
    found: dict[str, list[tuple[Record, Outcome | None]]] = {}
    missing: dict[str, int] = {}
    for board in store.board_names():
        if boards is not None and board not in boards:
            continue
        note = store.board(board)
        records = [record for record in map(store.record, note["cells"]) if record is not None]
        missing[board] = len(note["cells"]) - len(records)
        if records:
            found[board] = audited(store, [(record, store.outcome(record)) for record in records])
            folder = store.root / "leaderboards" / board
            shown = BoardNote.model_validate({name: note[name] for name in BoardNote.model_fields if name in note})
            made = board_data(shown.title, shown.grid, found[board])
            materials = read_materials(store, note.get("exhibit"), found[board])
            with store.lease("leaderboards", board):
                _make_way(store, folder.rglob("*.*"))
                pictures = draw(folder, made, found[board], materials, registry)
                files[board] = write_files(folder, made, shown, found[board], pictures)
    if files:
        entries = []
        for board in store.board_names():
            folder = store.root / "leaderboards" / board
            try:
                if board not in files:
                    store.check_files(board)
                if folder.is_dir():
                    entries.append(IndexEntry.read(folder))
            except StoreError as error:
                # Another grid's board, which that grid's run makes again.
                warn(f"{error}; the list of boards goes without it")
        index = store.root / "leaderboards" / INDEX
        _make_way(store, [index])
        write_atomically(index, index_page(entries))
        store.note_files(list(files))
    return Boards(files, found, missing)


def _make_way(store: Store, places: Iterable[Path]) -> None:
    """Rename directories that lie where files of a board belong, as their names show."""
    for path in list(places):
        if path.suffix in (".csv", ".html", ".json", ".md", ".png", ".svg") and path.is_dir():
            store.drop(path)


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
        store.replace_record(before, after)
    return result
