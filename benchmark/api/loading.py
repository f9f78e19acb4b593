"""From a directory of results to its report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robbench.api.report import Report
from robbench.core.errors import RequestError, did_you_mean
from robbench.evaluation.audit import marked
from robbench.leaderboards.archive import NOTE, RECORDS, read_archive, read_note
from robbench.results.board_cells import board_cells
from robbench.results.schema import BoardNote
from robbench.results.store import Store


def load(path: str | Path, board: str | None = None) -> Report:
    """Read a report from a store, from the directory of one of its boards, or from a published board.

    Args:
        path: A store (``runs``), a board in it (``runs/leaderboards/full-digits``), a published board or what
            ``Report.save`` wrote, or the directory of several of them.
        board: Name of the board, where the directory holds several.

    Raises:
        RequestError: If there is no board there, none of that name, or several and none is named.
        StoreError: If a file is damaged.

    Example:
        >>> report = robbench.load("runs", board="full-digits")
        >>> report.worst_case()
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise RequestError(f'"{place}" is no directory; name a store, or the directory of a board')
    if _is_published(place):
        _only(board, place)
        return _published(place)
    store = Store(place)
    if (place / "boards").is_dir():
        return _stored(store, _chosen(store.board_names(), board, place, place / "leaderboards"))
    if place.name == "leaderboards" and (place.parent / "boards").is_dir():
        return load(place.parent, board)
    if place.parent.name == "leaderboards" and (place.parent.parent / "boards").is_dir():
        store = Store(place.parent.parent)
        _only(board, place)
        return _stored(store, _chosen(store.board_names(), place.name, store.root, place.parent))
    if (place / NOTE).is_file():
        raise RequestError(f'"{place}" is a board without its cells ({RECORDS}); name its store, or a published board')
    folders = {folder.name: folder for folder in sorted(place.iterdir()) if _is_published(folder)}
    if not folders:
        raise RequestError(f'"{place}" holds no results; robbench run and Report.save make some')
    return load(folders[_chosen(folders, board, place, place)])


def _is_published(place: Path) -> bool:
    return (place / NOTE).is_file() and (place / RECORDS).is_file()


def _only(board: str | None, place: Path) -> None:
    if board not in (None, place.resolve().name):
        raise RequestError(f'"{place}" is one board, not "{board}"', "board")


def _chosen(known: Iterable[str], board: str | None, place: Path, folder: Path) -> str:
    names = sorted(known)
    if not names:
        raise RequestError(f'"{place}" holds no board yet; robbench run makes one')
    if board is None and len(names) > 1:
        listed = ", ".join(f'"{name}"' for name in names)
        raise RequestError(f'"{place}" holds {len(names)} boards, name one, as in "{folder / names[0]}": {listed}')
    if board is not None and board not in names:
        raise RequestError(f'"{place}" holds no board "{board}"; {did_you_mean(board, names)}', "board")
    return names[0] if board is None else board


def _published(folder: Path) -> Report:
    cells = read_archive(folder)
    if not cells:
        raise RequestError(f'"{folder}" is a board without any cell')
    # Files may be of others: what the audit finds is not taken on trust.
    return Report(folder.resolve().name, read_note(folder), tuple(marked(cells)))


def _stored(store: Store, board: str) -> Report:
    note = store.board(board)
    cells = board_cells(store, board, note)
    if not cells:
        raise RequestError(f'none of the cells of "{board}" was run yet; robbench run goes on with it', str(store.root))
    shown = BoardNote.model_validate({name: note[name] for name in BoardNote.model_fields if name in note})
    return Report(board, shown, tuple(cells), store)
