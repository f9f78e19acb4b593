"""The boards of a store: noted before a run, and made from records and outcomes alone after it."""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robbench.core.atomic_io import file_name
from robbench.core.errors import StoreError, unless_damaged, warn
from robbench.core.registry import Registry
from robbench.data.lazy_images import LazyImages
from robbench.evaluation.audit_flags import UNRANKED
from robbench.planning.grid import named_size, ranked_by
from robbench.results.board_cells import BoardNames, board_cells, list_boards
from robbench.results.board_origin import BoardOrigin
from robbench.results.notes import INDEX
from robbench.results.schema import BoardNote, Bound, Outcome, Record, Reference, digest
from robbench.results.store import Store
from robbench.results.store_index import StoreIndex

if TYPE_CHECKING:
    from robbench.planning.plan import Data, Job, Plan

EXHIBITED = 8
"""Training images of each class that are kept for figures."""
_EXHIBIT_BYTES = 2**26
"""What they may take of a data set that stays in its files; there may be none of them."""


@dataclass(frozen=True)
class Boards:
    """What a run or a report wrote.

    Attributes:
        files: The boards' files, by board.
        cells: The records and outcomes that they rest on, by board.
        missing: How many of their cells were not run yet, by board.
        rank_by: The size of change that the grid says to rank by, by board.
        unfinished: How many cells and models of a run are to be tried again: those that failed, and cells that were
            done before and lack what figures are drawn from.
        refused: Why a board could not be written, by board.
        unchanged: The failed cells of boards that were not made again, since nothing that they show has changed.
    """

    files: dict[str, list[Path]]
    cells: dict[str, list[tuple[Record, Outcome | None]]]
    missing: dict[str, int]
    rank_by: dict[str, str]
    unfinished: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    unchanged: dict[str, tuple[Record, ...]] = field(default_factory=dict)

    def failed(self) -> list[Record]:
        """The records of failed cells."""
        found = [record for cells in self.cells.values() for record, _ in cells if record.status == "failed"]
        return found + [record for records in self.unchanged.values() for record in records]


def note_boards(plan: Plan, store: Store) -> dict[str, list[str]]:
    """Write down which cells the plan's boards are made of, and what they are called; returns their keys by board."""
    found: dict[str, list[Job]] = {}
    for job in plan.jobs:
        found.setdefault(job.data.choice.label, []).append(job)
    keys: dict[str, list[str]] = {}
    for jobs in found.values():
        data = jobs[0].data
        note = BoardNote(
            grid=plan.name,
            title=plan.grid.title,
            about=plan.grid.about,
            references=tuple(
                Reference(**reference.model_dump(exclude={"dataset"}))
                for reference in plan.grid.references
                if data.is_called(reference.dataset)
            ),
            bounds=tuple(
                Bound(**bound.model_dump(exclude={"dataset", "threat"}), threat=named_size(bound.threat, {}))
                for bound in plan.grid.bounds
                if data.is_called(bound.dataset)
            ),
            differences=next((text for name, text in plan.grid.differences.items() if data.is_called(name)), ""),
            rank_by=ranked_by(plan.grid.rank_by, data.eps),
        )
        specs = {cell.key: cell.spec for job in jobs for cell in job.cells}
        models = list(dict.fromkeys(job.key for job in jobs))
        names = BoardNames.of(specs).model_dump(mode="json")
        board = file_name(f"{plan.name}-{data.choice.label}")
        if not plan.as_written:
            # Keys say what is asked for, whatever option or file it was asked with; names and texts are the grid's own.
            embedded = [cell.condition.embed for job in jobs for cell in job.cells]
            # Bounds are newer than names of boards, which stay.
            said = note.model_dump(mode="json", exclude=None if note.bounds else {"bounds"})
            board = f"{board}-{digest([list(specs), embedded, models, names, said])[:8]}"
        store.note_board(board, note, list(specs), models, exhibit(data, store), names)
        keys[board] = list(specs)
    return keys


def exhibit(data: Data, store: Store) -> str:
    """Keep some training images of each class for figures; returns their name under ``exhibits``."""
    name = digest([data.decoded.fingerprint, data.splits.train.tolist(), EXHIBITED])[:16]
    path = store.exhibit(name)
    if unless_damaged(lambda: store.read_archive(path), None, "it is to be made again") is None:
        splits = data.splits
        labels, images = splits.labels[splits.train], data.decoded.images
        each = EXHIBITED
        if isinstance(images, LazyImages):
            each = min(each, _EXHIBIT_BYTES // (data.num_classes * math.prod(images.shape[1:])))
        picked = np.concatenate([splits.train[labels == c][:each] for c in range(data.num_classes)])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images[picked], labels=splits.labels[picked])
        store.write_archive(path, buffer.getvalue())
    return name


def write_boards(
    store: Store,
    boards: Collection[str] | None = None,
    registry: Registry | None = None,
    again: bool = True,
    reload: float | None = None,
) -> Boards:
    """Make boards from records and outcomes alone; one that cannot be made keeps no other from it.

    Args:
        store: The store.
        boards: Their names; all that the store knows of where it is None.
        registry: The known figures; the built-in ones where it is None.
        again: Whether to make those, too, that show what they would show now.
        reload: Seconds after which their pages load themselves again, while a run goes on; None in the end.

    Raises:
        StoreError: If the list of boards cannot be written.
    """
    if unless_damaged(lambda: store.board_files(INDEX), None, "it is made again") is None:
        store.forget_files()
    written = Boards({}, {}, {}, {})
    index = StoreIndex.of(store)
    registry = registry or Registry(installed=False)
    for board in store.board_names():
        if boards is None or board in boards:
            try:
                origin = BoardOrigin.now(board, index, registry, reload)
                if again or not _is_current(store, board, origin):
                    _write_board(store, board, registry, written, origin.digest, reload)
                else:
                    written.missing[board], written.unchanged[board] = origin.missing, origin.failed
            except StoreError as error:
                written.refused[board] = str(error)
    index.save()
    listed = unless_damaged(lambda: store.check_files(INDEX), False, "it is made again")
    if written.files or (written.unchanged and not listed):
        list_boards(store, list(written.files))
    return written


def _is_current(store: Store, board: str, origin: BoardOrigin) -> bool:
    """Whether a board's files are there, whole, and made of what it would be made of now."""
    current = origin.digest and store.made_of(board) == origin.digest
    return bool(current) and unless_damaged(lambda: store.check_files(board), False, "its board is made again")


def _write_board(
    store: Store, board: str, registry: Registry, written: Boards, made_of: str, reload: float | None
) -> None:
    """Make one board, and put down what it is made of."""
    from robbench.leaderboards import board_data, write_files
    from robbench.leaderboards.artifact_reader import read_materials
    from robbench.leaderboards.plots import draw

    note = store.board(board)
    cells = board_cells(store, board, note)
    written.missing[board] = len(note["cells"]) - len(cells)
    if not cells:
        return
    folder = store.root / "leaderboards" / board
    try:
        shown = BoardNote.model_validate({name: note[name] for name in BoardNote.model_fields if name in note})
        made = board_data(shown.title, shown.grid, cells, shown.rank_by)
    except ValueError as error:
        raise StoreError(f"its cells make no board: {error}; run its grid again") from error
    materials = read_materials(store, note.get("exhibit"), cells)
    for row in made.rows:
        if UNRANKED in row.flags:
            found = f"{UNRANKED}: {row.flags[UNRANKED]}"
            warn(f"ERROR OF THE SOFTWARE, {made.heading}, {row.label}: {found}; please report it")
    with store.lease("leaderboards", board):
        store.make_way(board)
        pictures = draw(folder, made, cells, materials, registry)
        written.files[board] = write_files(folder, made, shown, cells, pictures, reload)
        store.note_files([board], made_of)
    written.cells[board], written.rank_by[board] = cells, shown.rank_by
