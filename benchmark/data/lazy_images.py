"""Images of data sets that do not fit memory: an index of their files; each is decoded when it is asked for.

Needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line
from robbench.data.datasets._image_decoding import Header, read_header, read_image, square
from robbench.data.datasets._parquet_rows import stored_rows

RESIDENT = 2**30
"""Bytes that the decoded images of a data set may take; those of larger ones stay in their files."""
_CHUNK = 256

T = TypeVar("T")


class Mapped:
    """Arrays that are mapped from a file are pickled by its name: a worker maps them again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The class, its fields, and the files of those that are mapped."""
        mapped = {
            name: str(value.filename)
            for name, value in vars(self).items()
            if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)
        }
        return unpickled, (type(self), {**vars(self), **dict.fromkeys(mapped)}, mapped)


def unpickled(kind: Callable[..., T], fields: dict[str, Any], mapped: dict[str, str]) -> T:
    """What was pickled with some of its arrays mapped from files."""
    arrays = {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in mapped.items()}
    return kind(**{**fields, **arrays})


@dataclass(frozen=True)
class LazyImages(Mapped):
    """Images that stay in their files. Each is verified by its hash when it is decoded.

    Attributes:
        root: Directory that holds the files.
        paths: Path of each image's file below it, bytes, shape ``(N,)``.
        hashes: SHA-256 of each image as it is stored, uint8, shape ``(N, 32)``.
        shape: ``(N, C, H, W)``; other images are scaled to it, the longer side cut.
        rows: Row of each image in its Parquet file, int64, shape ``(N,)``; -1 for a file of its own.
        column: The column of images in Parquet files.
    """

    root: Path
    paths: NDArray[np.bytes_]
    hashes: NDArray[np.uint8]
    shape: tuple[int, int, int, int]
    rows: NDArray[np.int64]
    column: str = ""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, index: NDArray[np.int64] | int | np.int64) -> NDArray[np.uint8]:
        """Decode the images at some positions, or one.

        Raises:
            RequestError: If a file is not what was indexed, or no image.
        """
        at = np.atleast_1d(np.asarray(index, dtype=np.int64))
        images = np.empty((len(at), *self.shape[1:]), dtype=np.uint8)

        def fill(place: tuple[int, bytes]) -> None:
            number, content = place
            images[number] = self._decoded(int(at[number]), content)

        with quiet(), ThreadPoolExecutor() as pool:
            for start in range(0, len(at), _CHUNK):
                list(pool.map(fill, self._contents(start, at[start : start + _CHUNK])))
        return images if np.ndim(index) else images[0]

    def _decoded(self, position: int, content: bytes) -> NDArray[np.uint8]:
        row = f"#{self.rows[position]}" if self.column else ""
        name = f"{self._file(self.paths[position])}{row}"
        if hashlib.sha256(content).digest() != self.hashes[position].tobytes():
            raise RequestError(f"{name} was changed after its data set was indexed; run again")
        image, (channels, height, width) = read_image(io.BytesIO(content), name).image, self.shape[1:]
        return np.asarray(square(image, height) if height == width else image).transpose(2, 0, 1)[:channels]

    def _file(self, path: bytes) -> Path:
        return self.root / os.fsdecode(path)

    def _contents(self, start: int, at: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """What is stored of images at some positions, each with its number, which counts from ``start``."""
        paths = self.paths[at]
        for path in np.unique(paths):
            numbers, file = np.flatnonzero(paths == path), self._file(path)
            try:
                if self.column:
                    yield from stored_rows(file, self.column, zip(start + numbers, self.rows[at[numbers]], strict=True))
                else:
                    content = file.read_bytes()
                    yield from ((int(start + number), content) for number in numbers)
            except RequestError:
                raise
            except Exception as error:  # readers raise almost anything on damaged files
                raise RequestError(f"{file} cannot be read any more: {one_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of decoders, which warn of what they then read all the same, and do not say of which file."""
    # Another thread than the main one would change what all threads are shown.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Indexed:
    """What an index holds of an image that was not decoded.

    Attributes:
        sha256: Of what is stored.
        header: What its first bytes say.
    """

    sha256: bytes
    header: Header


def indexed(content: bytes, name: str) -> Indexed:
    """What an index holds of an image.

    Args:
        content: What is stored.
        name: What it is called in messages.

    Raises:
        RequestError: If it is no image.
    """
    return Indexed(hashlib.sha256(content).digest(), read_header(content, name))


def joined_hashes(found: Iterable[Indexed]) -> NDArray[np.uint8]:
    """The hashes of images, shape ``(N, 32)``."""
    return np.frombuffer(b"".join(one.sha256 for one in found), dtype=np.uint8).reshape(-1, 32)
