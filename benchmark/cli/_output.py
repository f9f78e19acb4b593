"""Output that does not end a command: a reader that goes away, a full disk, a terminal without the letters."""

from __future__ import annotations

import io
import os
from typing import IO, Any, cast


class _Lasting:
    """A text stream on which writing never fails; once it would, the rest is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        # What is still in the buffer goes there as well, or Python would complain when it ends.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)


def lasting(stream: IO[str] | None) -> IO[str]:
    """A stream that drops what it cannot write, and shows ``?`` for letters that its encoding lacks.

    Args:
        stream: Standard output or standard error; None where it is closed.
    """
    if stream is None:
        # So that no file is opened under the number of the stream, and written to by mistake.
        os.open(os.devnull, os.O_WRONLY)
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
    return cast(IO[str], _Lasting(stream))
