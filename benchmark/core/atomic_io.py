"""Writing files whole or not at all, and telling by their content whether they changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from robbench.core.errors import RequestError, StoreError
from robbench.core.safe_text import portable, visible
from robbench.results.schema import digest

_WAITS = (0.01, 0.1, 0.5, 1.0)
"""Seconds between attempts to replace a file: on Windows it cannot be while somebody reads it."""


def write_atomically(path: Path, data: bytes | str, flush: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file.
        data: Its content.
        flush: Whether it is to be whole after a power cut, too; without, what is written later must tell of damage.

    Raises:
        StoreError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        replace_file(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was finished is kept") from error


def replace_file(source: Path, target: Path) -> None:
    """Rename a file, in place of one that may be there and that others may be reading.

    Raises:
        OSError: If it cannot be renamed.
    """
    for wait in _WAITS:
        with contextlib.suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(wait)
    source.replace(target)


def make_way(path: Path) -> None:
    """Rename what keeps a file of ours from being written: a directory in its place, or a file in that of its folder.

    It stays beside them as an unfinished file, for ``gc`` to remove.

    Raises:
        OSError: If it cannot be renamed.
    """
    folder = path.parent
    for place, wrong in ((folder, folder.exists() and not folder.is_dir()), (path, path.is_dir())):
        if wrong:
            place.rename(place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp"))


def check_writable(directory: Path, option: str) -> None:
    """See, without writing anything, whether a directory that may not be there yet can be written to.

    Args:
        directory: The directory.
        option: The option that names it, for the message.

    Raises:
        RequestError: If it cannot.
    """
    place = directory.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise RequestError(f'"{directory}" cannot be written to: {place} is not a directory', option)
    if not os.access(place, os.W_OK | os.X_OK):
        fixed = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        reason = f"the file system of {place} is read-only" if fixed else f"no permission to write in {place}"
        raise RequestError(f'"{directory}" cannot be written to: {reason}', option)


def digest_files(files: Sequence[Path]) -> str:
    """A hash of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.name) + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def file_name(text: str) -> str:
    """A name for a file or folder on any system.

    What does not suit one is replaced, and a short hash of the text tells it apart.
    """
    # Some of what counts as a letter is blank.
    suits = [(letter.isalnum() or letter in "-_.") and visible(letter) == letter for letter in text]
    plain = "".join(letter if one else "_" for letter, one in zip(text, suits, strict=True))
    plain = plain[:80].encode()[:160].decode(errors="ignore")
    if plain == text and portable(text) and not text.startswith("."):
        return text
    plain = plain if portable(f"{plain}-") and not plain.startswith(".") else f"_{plain}"
    return f"{plain}-{digest(text)[:6]}"
