"""Archives that torch writes, read by torch's own reader, so that nothing is checked that is not what is loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line

MOST_TEXT = 64 * 2**20
"""Bytes of code or JSON in an archive."""


class Archive:
    """The records of an archive by name.

    Args:
        path: The file.

    Raises:
        RequestError: If it is none, or if its records have far more bytes than it: torch compresses code alone.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader: Any = torch._C.PyTorchFileReader(io.BytesIO(path.read_bytes()))  # of a file of any name
            self.names: tuple[str, ...] = tuple(self._reader.get_all_records())
            total = sum(map(self._size, self.names))
        except RuntimeError as error:
            raise RequestError(f"{path.name} is no archive of torch: {one_line(str(error), 200)}") from None
        if total > path.stat().st_size + MOST_TEXT:
            raise RequestError(f"{path.name} unpacks to {total:,} bytes, which torch does not write; save it again")

    def _size(self, name: str) -> int:
        if not hasattr(self._reader, "get_record_size"):  # an older torch
            return len(self.read(name))
        size: int = self._reader.get_record_size(name)
        return size

    def read(self, name: str) -> bytes:
        """A record."""
        content: bytes = self._reader.get_record(name)
        return content

    def text(self, name: str) -> str:
        """A record of text.

        Raises:
            RequestError: If it is longer than any that torch writes, or no text.
        """
        if self._size(name) > MOST_TEXT:
            raise RequestError(f'"{name}" in it has more than {MOST_TEXT:,} bytes')
        try:
            return self.read(name).decode()
        except UnicodeDecodeError:
            raise RequestError(f'"{name}" in it is no text') from None
