"""The cells of a board as it shows them: under its own names, with what the audit finds on its rows.

Cells are shared by all boards of a store. What one grid calls a row or a column, and which of a row's cells it audits,
is no part of them: it is noted with the board and applied when its cells are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError, warn
from robbench.evaluation.audit import marked
from robbench.leaderboards.html import IndexEntry, index_page
from robbench.results.notes import INDEX
from robbench.results.schema import CellResult, CellSpec, Record
from robbench.results.store import Store

_NAME = r"(?:/|\\+)[^\s/\\:'\"<>|,;()\[\]]+"
_HOME = re.compile(rf"(?:/home|/Users|[A-Za-z]:(?:/|\\+)Users){_NAME}")
_PLACE = re.compile(rf"(?:file://|(?<![\w/\\.~…]))(?:~|[A-Za-z]:)?(?:{_NAME}){{2,}}")


class _Names(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowName(_Names):
    """What a board calls a model, and the one that it starts from."""

    label: str
    start: str | None = None


class ColumnName(_Names):
    """What a board calls the condition of a cell, and the attacks in it."""

    label: str
    stages: tuple[str, ...] = ()


class BoardNames(_Names):
    """What a grid can call differently for one and the same cell.

    Attributes:
        dataset: Label of the data set.
        rows: By key of the model.
        columns: By key of the cell.
    """

    dataset: str
    rows: dict[str, RowName]
    columns: dict[str, ColumnName]

    @classmethod
    def of(cls, specs: Mapping[str, CellSpec]) -> BoardNames:
        """The names in the specifications of a board's cells, by key."""
        return cls(
            dataset=next((spec.dataset.label for spec in specs.values()), ""),
            rows={spec.model_key: RowName(label=spec.model.label, start=spec.model.start) for spec in specs.values()},
            columns={
                key: ColumnName(
                    label=spec.condition.label, stages=tuple(stage.label for stage in spec.condition.stages)
                )
                for key, spec in specs.items()
            },
        )

    def applied(self, key: str, spec: CellSpec) -> CellSpec:
        """The specification of a cell under these names, as far as they name it.

        Raises:
            ValueError: If they name another number of attacks than it has.
        """
        dataset, model, condition = spec.dataset, spec.model, spec.condition
        row, column = self.rows.get(spec.model_key), self.columns.get(key)
        if row is not None:
            model = model.model_copy(update={"label": row.label, "start": row.start})
        if column is not None:
            stages = tuple(
                stage.model_copy(update={"label": label})
                for stage, label in zip(condition.stages, column.stages, strict=True)
            )
            condition = condition.model_copy(update={"label": column.label, "stages": stages})
        dataset = dataset.model_copy(update={"label": self.dataset})
        return spec.model_copy(update={"dataset": dataset, "model": model, "condition": condition})


def renamed(spec: CellSpec, key: str, known: CellSpec) -> CellSpec:
    """A cell's specification under the names that another specification of it has."""
    return BoardNames.of({key: known}).applied(key, spec)


def board_cells(store: Store, board: str, note: Mapping[str, Any]) -> list[CellResult]:
    """The finished and failed cells of a board, named, audited, and without the places of files in what they tell.

    Args:
        store: The store.
        board: The board's name.
        note: What is noted of it; notes of an earlier version have no names, and those in the records stand.

    Raises:
        StoreError: If a cell or the board's names cannot be read.
    """
    path = store.root / "boards" / f"{board}.json"
    try:
        names = BoardNames.model_validate(note["names"]) if note.get("names") else None
        records = [record for key in note["cells"] if (record := store.record(str(key))) is not None]
        if names is not None:
            records = [record.model_copy(update={"spec": names.applied(record.key, record.spec)}) for record in records]
    except ValueError as error:
        reason = str(error).split("\n")[0]
        raise StoreError(f"cannot read {path}: {reason}; remove it and run its grid again") from error
    return marked([(_told(record), store.outcome(record)) for record in records], str(note.get("rank_by", "")))


def _told(record: Record) -> Record:
    reason = None if record.reason is None else without_places(record.reason)
    return record.model_copy(update={"reason": reason, "notes": tuple(map(without_places, record.notes))})


def without_places(text: str) -> str:
    """A text in which only the last name of every path is left, and no home directory: boards are published."""
    return _PLACE.sub(lambda found: "…/" + re.split(r"[/\\]", found[0])[-1], _HOME.sub("~", text))


def list_boards(store: Store, changed: Sequence[str]) -> None:
    """Write the page that leads to the boards of a store.

    Args:
        store: The store.
        changed: Boards that have just been made or removed.

    Raises:
        StoreError: If the page cannot be written.
    """
    with store.lease("leaderboards", INDEX):
        entries = []
        for board in store.board_names():
            try:
                if board not in changed:
                    _check(store, board)
                folder = store.root / "leaderboards" / board
                if folder.is_dir():
                    entries.append(IndexEntry.read(folder))
            except StoreError as error:
                # Another grid's board, which that grid's run makes again.
                warn(f"{error}; the list of boards goes without it")
        store.make_way(INDEX)
        write_atomically(store.root / "leaderboards" / INDEX, index_page(entries))
        store.note_files(changed)


def _check(store: Store, board: str) -> None:
    try:
        store.check_files(board)
    except StoreError:
        # Or another run is writing it: then it is whole once that is done.
        with store.lease("leaderboards", board):
            store.check_files(board)
