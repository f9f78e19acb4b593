"""What a store holds, and what of it can go: leftovers of unfinished work, and boards that somebody names."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robbench.core.errors import RequestError, StoreError, did_you_mean
from robbench.results.board_cells import list_boards
from robbench.results.store import Store

_WRITTEN = (
    *("boards", "cells", "data", "exhibits", "labels", "leaderboards", "models", "requests", "running", "searches"),
    "starts",
)


@dataclass(frozen=True)
class Holding:
    """A part of the store.

    Attributes:
        name: What it is.
        kept: Entries that stay, and their bytes.
        removed: Entries that go, and their bytes.
    """

    name: str
    kept: tuple[int, int]
    removed: tuple[int, int]


@dataclass(frozen=True)
class Survey:
    """What a store holds, and what of it is to go.

    Attributes:
        store: The store.
        holdings: Its parts.
        own: By board, how many of its cells are of no other board.
        boards: The boards that are to go.
        cells: Keys of the cells that are to go.
        models: Keys of the models that are to go.
        leftovers: Files and directories of unfinished work.
    """

    store: Store
    holdings: tuple[Holding, ...]
    own: dict[str, int]
    boards: tuple[str, ...]
    cells: tuple[str, ...]
    models: tuple[str, ...]
    leftovers: tuple[Path, ...]


def survey(store: Store, boards: Sequence[str] = ()) -> Survey:
    """See what can go: leftovers of unfinished work, and some boards with those of their cells that no other has.

    Everything that a request has finished stays, unless one of its boards is named.

    Args:
        store: The store.
        boards: Names of the boards to remove.

    Raises:
        RequestError: If there is no such board.
        StoreError: If the note of a board or of a request cannot be read.
    """
    notes = store.boards()
    for board in boards:
        if board not in notes:
            raise RequestError(f'there is no board "{board}"; {did_you_mean(board, notes)}', "--board")
    cells = {board: set(note["cells"]) for board, note in notes.items()}
    for request in store.requests().values():
        # A board that was made of other cells once, as by an earlier version, is answerable for those, too.
        for board, keys in request["boards"].items():
            cells.setdefault(board, set()).update(keys)
    own = {board: len(cells[board] - _union(keys for name, keys in cells.items() if name != board)) for board in notes}
    kept = _union(keys for board, keys in cells.items() if board not in boards)
    gone = sorted((_union(cells[board] for board in boards) - kept) & set(store.keys("cells")))
    models = sorted(_models(store, notes, boards, gone, kept) & set(store.keys("models"))) if boards else []
    leftovers = tuple(_leftovers(store, _union(cells.values()), _union(note["models"] for note in notes.values())))
    data = [path for path in (store.root / "data").glob("[!.]*/*") if path.is_file()]
    sizes = {
        "boards": {board: store.size("leaderboards", board) for board in notes},
        **{kind: {key: store.size(kind, key) for key in store.keys(kind)} for kind in ("cells", "models")},
    }
    holdings = (
        _holding("boards", sizes["boards"], boards),
        _holding("cells", sizes["cells"], gone),
        _holding("models", sizes["models"], models),
        Holding("unfinished files", (0, 0), (len(leftovers), sum(map(_size, leftovers)))),
        Holding("decoded images", (len(data), sum(map(_size, data))), (0, 0)),
    )
    return Survey(store, holdings, own, tuple(boards), tuple(gone), tuple(models), leftovers)


def remove(found: Survey) -> None:
    """Remove what is to go.

    Raises:
        StoreError: If the page that leads to the other boards cannot be written.
    """
    for path in found.leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for kind, keys in (("cells", found.cells), ("models", found.models)):
        for key in keys:
            found.store.remove(kind, key)
    # Last, so that whatever interrupts this, the same words go on with it.
    for board in found.boards:
        found.store.forget_board(board)
    if found.boards:
        list_boards(found.store, found.boards)


def _union(sets: Iterable[Iterable[str]]) -> set[str]:
    return {key for keys in sets for key in keys}


def _models(
    store: Store, notes: Mapping[str, Any], boards: Sequence[str], gone: Sequence[str], kept: set[str]
) -> set[str]:
    """Models of the boards that go which no other board, no cell that stays and no other model needs."""
    needed = _union(note["models"] for board, note in notes.items() if board not in boards)
    needed |= {record.spec.model_key for key in kept if (record := store.record(key)) is not None}
    wanted = _union(notes[board]["models"] for board in boards)
    wanted |= {record.spec.model_key for key in gone if (record := store.record(key)) is not None}
    starts = {key: store.model_info(key).get("start") for key in store.keys("models") if store.has_model(key)}
    while further := {start for key in needed if (start := starts.get(key))} - needed:
        needed |= further
    return wanted - needed


def _holding(name: str, sizes: Mapping[str, int], gone: Sequence[str]) -> Holding:
    freed = [sizes[key] for key in gone]
    return Holding(name, (len(sizes) - len(gone), sum(sizes.values()) - sum(freed)), (len(gone), sum(freed)))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _leftovers(store: Store, noted: set[str], wanted: set[str]) -> Iterator[Path]:
    """What unfinished work left that will not go on: half-written files, and failures that no board shows."""
    root = store.root
    # Only where the store writes: the directory may hold other things, too.
    # What lay where a file belongs was renamed, and may be a directory; leases are free, since nobody holds the store.
    for name in _WRITTEN:
        yield from (path for kind in (".*.tmp", ".*.lock*") for path in (root / name).rglob(kind))
    yield from root.glob(".*.tmp")
    yield from root.glob("running/[!.]*.json")  # of runs that were killed
    yield from (path for path in (root / "data").glob(".*") if path.is_dir())
    for path in root.glob("models/*/checkpoint.pt"):
        if path.with_name("model.json").is_file() or path.parent.name not in wanted:
            yield path
    for key in store.keys("cells"):
        if key not in noted and _is_unfinished(store, key):
            yield store.cell_dir(key)


def _is_unfinished(store: Store, key: str) -> bool:
    try:
        record = store.record(key)
    except StoreError:
        return False  # damaged: it may have been finished
    return record is None or record.status == "failed"
