"""Stored files that tell by themselves whether they are what was written.

A seal is a hash of a file's content and of its place in the store, so that neither damage nor a file of another key
passes. JSON holds it under a key of its own, a zip archive (npz, a checkpoint) as its comment; other programs read both
as ever. Files of versions without seals pass as they are, archives by their check sums.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import make_way, write_atomically
from robbench.core.errors import Damaged, StoreError
from robbench.results.schema import digest, dumps

SEAL = "seal"
MISSING = "it is missing"
CHANGED = "its content is not what was written there"

_END = b"PK\x05\x06"
_END_SIZE = 22
_LENGTH = struct.Struct("<H")
_NO_COMMENT = _LENGTH.pack(0)
_SIZE = 64


def sealed_json(value: Mapping[str, Any], place: str) -> str:
    """A JSON object with its seal.

    Args:
        value: The object, without a key ``seal``.
        place: Path of the file within the store.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return dumps({**plain, SEAL: digest([place, plain])})


def unsealed_json(data: bytes, place: str) -> tuple[dict[str, Any], bool]:
    """The object that ``sealed_json`` wrote, and whether it has a seal; older files have none.

    Raises:
        ValueError: If it is not what was written.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != digest([place, value]):
        raise ValueError(CHANGED)
    return value, seal is not None


def sealed_archive(data: bytes, place: str) -> bytes:
    """A zip archive without comment, with its seal; see ``sealed_json``."""
    return data[: -_LENGTH.size] + _LENGTH.pack(_SIZE) + _archive_seal(data, place)


def unsealed_archive(data: bytes, place: str) -> bytes:
    """The archive that was sealed; one of an older version as it is, if its check sums hold.

    Raises:
        ValueError: If it is not what was written.
    """
    body, length, seal = data[: -_SIZE - _LENGTH.size], data[-_SIZE - _LENGTH.size : -_SIZE], data[-_SIZE:]
    if length == _LENGTH.pack(_SIZE) and body[_LENGTH.size - _END_SIZE :].startswith(_END):
        archive = body + _NO_COMMENT
        if seal != _archive_seal(archive, place):
            raise ValueError(CHANGED)
        return archive
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            if opened.testzip() is not None:
                raise ValueError(CHANGED)
    except Exception as error:
        # What a damaged archive makes of the library is not limited to its own errors.
        raise ValueError(f"it is no whole archive: {error}") from None
    return data


def hash_of(data: bytes) -> str:
    """The hash that is recorded of a file."""
    return hashlib.sha256(data).hexdigest()


def _archive_seal(data: bytes, place: str) -> bytes:
    return hash_of(place.encode() + b"\0" + data).encode()


def verify_hash(path: Path, sha256: str | None) -> None:
    """Compare a file with its recorded hash; versions that recorded none are believed.

    Raises:
        Damaged: If it is missing or differs.
    """
    with _opened(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
    if found != sha256:
        raise Damaged(path, CHANGED)


@dataclass(frozen=True)
class SealedDirectory:
    """A directory whose files are verified when they are read.

    Attributes:
        root: The directory, made when something is written to it.
    """

    root: Path

    def read(self, path: Path) -> dict[str, Any] | None:
        """A JSON object, or None where there is no file.

        Raises:
            Damaged: If it is not what was written.
        """
        return self.read_sealed(path)[0]

    def read_sealed(self, path: Path) -> tuple[dict[str, Any] | None, bool]:
        """As ``read``, with whether it has a seal; files of older versions have none.

        Raises:
            Damaged: If it is not what was written.
        """
        data = _bytes(path)
        with _naming(path):
            return (None, False) if data is None else unsealed_json(data, self._place(path))

    def read_new(self, path: Path) -> dict[str, Any] | None:
        """As ``read``, of what versions without seals did not write: without one, it is not there.

        Raises:
            Damaged: If it is not what was written.
        """
        value, sealed = self.read_sealed(path)
        return value if sealed else None

    def copy(self, path: Path, other: SealedDirectory) -> None:
        """Copy a file that may not be there as it is to the same place of another directory, unverified.

        Raises:
            Damaged: If it is no file that can be read.
        """
        data = _bytes(path)
        if data is not None:
            other.put(other.root / self._place(path), data)

    def read_archive(self, path: Path) -> bytes | None:
        """A zip archive, or None where there is no file.

        Raises:
            Damaged: If it is not what was written.
        """
        data = _bytes(path)
        with _naming(path):
            return None if data is None else unsealed_archive(data, self._place(path))

    def read_hashed(self, path: Path, sha256: str | None) -> bytes:
        """A file whose hash is recorded elsewhere; versions that recorded none are believed.

        Raises:
            Damaged: If it is missing or differs.
        """
        data = _bytes(path)
        if data is None:
            raise Damaged(path, MISSING)
        if sha256 is not None and hash_of(data) != sha256:
            raise Damaged(path, CHANGED)
        return data

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON object with its seal."""
        self.put(path, sealed_json(value, self._place(path)))

    def write_archive(self, path: Path, data: bytes, flush: bool = True) -> None:
        """Write a zip archive, as of arrays, with its seal; see ``write_atomically``."""
        self.put(path, sealed_archive(data, self._place(path)), flush)

    def put(self, path: Path, data: bytes | str, flush: bool = True) -> None:
        """Write a file whose hash is recorded elsewhere; see ``write_atomically``."""
        with _changing(path):
            make_way(path)
        write_atomically(path, data, flush)

    def drop(self, path: Path) -> None:
        """Remove a file that may not be there."""
        with _changing(path):
            make_way(path)
            path.unlink(missing_ok=True)

    def _place(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _bytes(path: Path) -> bytes | None:
    try:
        with _opened(path) as file:
            return file.read()
    except Damaged as error:
        # A link to nowhere is there.
        if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
            return None
        raise


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged(path, "it is no regular file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise Damaged(path, MISSING) from error
    except OSError as error:
        raise Damaged(path, str(error.strerror or error)) from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Damaged(path, str(error)) from error


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was finished is kept") from error
