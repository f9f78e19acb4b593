"""Directories of published boards: which there are, and putting one into its place as a whole or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from robbench.core.atomic_io import check_writable, write_atomically
from robbench.core.errors import RequestError, StoreError
from robbench.core.lease import Busy, leased
from robbench.core.safe_text import one_line
from robbench.leaderboards.archive import NOTE, RECORDS
from robbench.leaderboards.figure_manifest import FILE_STEM
from robbench.leaderboards.files import OPTIONAL
from robbench.leaderboards.html import IndexEntry, index_page
from robbench.leaderboards.markdown import escape, interval
from robbench.leaderboards.overview import BoundedBoard, overview, proved_table
from robbench.results.store import Store
from robbench.results.verification import refuse

LISTING = "<!-- Written by robbench publish, which writes it again unless this line is removed. -->"

Files = Mapping[str, bytes]
"""Contents by name, with a slash for files of a directory."""


@contextlib.contextmanager
def readable(place: object) -> Iterator[None]:
    """Whatever goes wrong in reading is a ``StoreError`` of one line: files of others can be broken in any way."""
    try:
        yield
    except (StoreError, RequestError):
        raise
    except Exception as error:
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise StoreError(one_line(f"{place}: it cannot be used: {reason}", 500)) from error


def boards_in(path: Path, option: str = "--from") -> list[Path]:
    """The published board that a directory is, or those that it holds.

    Args:
        path: The directory.
        option: What a complaint names.

    Raises:
        RequestError: If it cannot be read or holds none.
    """
    try:
        folders = [path] if _is_board(path) else _inside(path)
    except OSError as error:
        raise RequestError(f'"{path}" cannot be read: {error.strerror or error}', option) from None
    linked = next((folder for folder in folders if folder != path and folder.is_symlink()), None)
    if linked:
        raise RequestError(f'"{linked}" is a link, which could lead anywhere; name where it leads', option)
    if not folders:
        raise RequestError(f'"{path}" holds no published board; robbench publish makes one', option)
    return folders


def _inside(path: Path) -> list[Path]:
    return [item for item in sorted(path.iterdir()) if item.name[0] != "." and _is_board(item)]


def _is_board(folder: Path) -> bool:
    return (folder / NOTE).is_file() or (folder / RECORDS).is_file()


def check_target(store: Store, target: Path, others: Iterable[Path]) -> None:
    """See, without writing anything, whether boards can be published into a directory.

    Args:
        store: Where they come from.
        target: The directory.
        others: Directories that are read as well.

    Raises:
        RequestError: If they cannot.
    """
    place = target.resolve()
    if place.is_relative_to(store.root.resolve()):
        raise RequestError(f'"{target}" lies in the store {store.root}; publish to another place', "--to")
    if _is_board(place):
        raise RequestError(f'"{target}" is a published board itself; name the directory above it', "--to")
    for other in others:
        if place in (other.resolve(), other.resolve().parent):
            raise RequestError(f'"{target}" is read with --from; publish to another place', "--to")
    check_writable(target, "--to")


def check_replaceable(folder: Path, files: Files) -> None:
    """Refuse to replace a directory that holds what is no part of a board.

    Args:
        folder: The directory, which need not be there.
        files: What is to be there instead.

    Raises:
        StoreError: If something would be lost.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        refuse(f"{folder} is no directory; move it away")
    usual = {name.partition("/")[0] for name in files} | {"figures", "index.html", *OPTIONAL}
    with readable(folder):
        for item in sorted(folder.iterdir()) if folder.is_dir() else ():
            if item.name not in usual:
                refuse(f"{item} is no part of a published board and would be lost; move it away")


@contextlib.contextmanager
def held(folder: Path, option: str = "--to") -> Iterator[None]:
    """Make a directory if need be, and keep others from publishing into it meanwhile.

    Raises:
        RequestError: If it cannot be written to, or others are publishing into it.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(leased(folder / ".publishing.lock", most=0))
        except Busy:
            raise RequestError(f'somebody else is publishing into "{folder}"; try again later', option) from None
        except (OSError, StoreError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise RequestError(f'"{folder}" cannot be written to: {reason}', option) from None
        yield


def replace(folder: Path, files: Files) -> None:
    """Replace a directory by one with these files; whatever interrupts that, it is the old or the new one.

    Raises:
        StoreError: If it cannot be written.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        _recover(folder, new, old)
        for name, content in files.items():
            write_atomically(new / name, content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        _recover(folder, new, old)


def _recover(folder: Path, new: Path, old: Path) -> None:
    """Leave the directory as it was before an interruption, or as it is to be, and nothing beside it."""
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def write_index(target: Path) -> dict[str, str]:
    """List all boards of a directory in ``index.html`` and ``README.md``.

    Boards with proved bounds have a page for all of their grid besides, as ``third-party.md``. A markdown file that
    is somebody's own stays.

    Args:
        target: The directory.

    Returns:
        Why some boards cannot be listed.

    Raises:
        StoreError: If the lists cannot be written.
    """
    entries: list[IndexEntry] = []
    bounded: dict[str, list[BoundedBoard]] = {}
    refused = {}
    for folder in _inside(target):
        try:
            entries.append(IndexEntry.read(folder))
            board = BoundedBoard.read(folder)
        except StoreError as error:
            refused[folder.name] = str(error)
            continue
        if board and board.proofs and re.fullmatch(FILE_STEM, board.note.grid):
            bounded.setdefault(board.note.grid, []).append(board)
    write_atomically(target / "index.html", index_page(entries, list(map(proved_table, bounded.values()))))
    for grid, boards in bounded.items():
        _write_own(target / f"{grid}.md", overview(boards))
    _write_own(target / "README.md", _listing(entries, list(bounded)))
    return refused


def _write_own(path: Path, text: str) -> None:
    """Write a page unless one is there that somebody else wrote."""
    with readable(path):
        if not path.exists() or path.read_bytes().startswith(LISTING.encode()):
            write_atomically(path, f"{LISTING}\n{text}")


def _listing(entries: Sequence[IndexEntry], overviews: Sequence[str] = ()) -> str:
    lines = [
        f"| [{escape(entry.title or entry.folder, brackets=True)}]({entry.link('README.md')}) "
        f"| {escape(entry.dataset)} | {entry.rows} "
        f"| {escape(entry.leader)}{f' (tied with {entry.tied})' if entry.tied else ''} "
        f"| {interval(entry.figure)} | {escape(entry.measure)} |"
        for entry in entries
    ]
    names = "| Board | Data set | Models | Best | % (95 % interval) | Ranked by |"
    together = [f"Attacks beside proved bounds: [{escape(grid, brackets=True)}]({grid}.md)." for grid in overviews]
    head = ["# Published boards", "", *(part for line in together for part in (line, ""))]
    return "\n".join([*head, names, "|:--|:--|--:|:--|--:|:--|", *lines]) + "\n"
