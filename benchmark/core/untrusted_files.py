"""Files of others: plain ones of a bounded size, in folders in which nothing leads elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from robbench.core.safe_text import portable, visible

MOST_FILES = 10_000
"""Files and folders that a folder of others may hold, over all levels."""
MOST_LEVELS = 8
_DEEPEST = 64
# Windows has none of these, and no pipes or links among plain names that they would matter for.
_NO_WAITING, _NO_LINK = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[{]|[\]}]', re.DOTALL)


@contextlib.contextmanager
def open_untrusted(path: Path, limit: int, linked: bool = False) -> Iterator[BinaryIO]:
    """Open a file of others for reading.

    Args:
        path: The file.
        limit: Bytes that it may have.
        linked: Whether it may be a link, or have other names.

    Raises:
        ValueError: If it is no plain file, is one that lies elsewhere too, or is larger.
        OSError: If it cannot be opened.
    """
    if path.is_symlink() and not linked:
        raise ValueError("it is a link, which could lead anywhere; put a copy in its place")
    # Without waiting: opening a pipe would last until somebody writes to it.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | _NO_WAITING | (0 if linked else _NO_LINK)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_plain(os.fstat(file.fileno()), linked)
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it has {size:,} bytes, more than {limit:,}")
        yield file


def read_untrusted(path: Path, limit: int, linked: bool = False) -> bytes:
    """The content of a file of others; see ``open_untrusted``."""
    with open_untrusted(path, limit, linked) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(path: Path, limit: int, linked: bool = False) -> Any:
    """The content of a JSON file of others; see ``open_untrusted`` and ``parse_json``."""
    return parse_json(read_untrusted(path, limit, linked).decode())


def parse_json(text: str) -> Any:
    """JSON of others.

    Raises:
        ValueError: If it is none, or is nested more deeply than anything that robbench writes.
    """
    if text.count("[") + text.count("{") > _DEEPEST:
        depth = 0
        for found in _TOKEN.finditer(text):
            depth += (found[0] in "[{") - (found[0] in "]}")
            if depth > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return json.loads(text)


def _check_plain(found: os.stat_result, linked: bool = False) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file")
    if found.st_nlink > 1 and not linked:
        raise ValueError(
            f"it is one of {found.st_nlink} names of one file, which may lie elsewhere; put a copy in its place"
        )


def check_name(name: str, shown: str, names: dict[str, str]) -> None:
    """See that the name of a file or folder of others is safe everywhere; see ``check_folder``.

    Args:
        name: The name.
        shown: What it is called in a complaint.
        names: The names beside it that were seen before; it is added.

    Raises:
        ValueError: If it is not.
    """
    if visible(name) != name or "\\" in name:
        raise ValueError(f'the name "{visible(shown)}" in it has characters that names cannot have')
    if not portable(name):
        raise ValueError(f'the name "{visible(shown)}" in it is none that every system can have')
    known = names.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
    if known != name:
        raise ValueError(f'"{known}" and "{name}" in it are one name on some file systems')


def check_folder(folder: Path) -> None:
    """See that everything in a folder of others is a plain file or a folder, under a name that is safe everywhere.

    No links, devices, pipes or sockets; no name with characters that are not shown as they are, such as control
    characters (see ``robbench.core.safe_text``), or that some system cannot have; no two names that some file systems
    take for one.

    Raises:
        ValueError: At the first thing that is not so, naming it; or if there are more than ``MOST_FILES``.
        OSError: If the folder cannot be read.
    """
    waiting, count = [(folder, 0)], 0
    while waiting:
        place, level = waiting.pop()
        names: dict[str, str] = {}
        with os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > MOST_FILES or level > MOST_LEVELS:
                    raise ValueError(f"it holds more than {MOST_FILES:,} files or {MOST_LEVELS} levels of folders")
                here = (place / entry.name).relative_to(folder)
                check_name(entry.name, str(here), names)
                if entry.is_symlink():
                    raise ValueError(f'"{here}" in it is a link, which could lead anywhere; put a copy in its place')
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((place / entry.name, level + 1))
                else:
                    try:
                        _check_plain(entry.stat(follow_symlinks=False))
                    except ValueError as error:
                        raise ValueError(f'"{here}" in it cannot be used: {error}') from None
