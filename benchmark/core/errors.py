"""Errors that are a user's to mend, each one line that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

from robbench.core.safe_text import one_line

_LONGEST = 20_000
"""Letters of a message, of which texts of others can be a part."""


class RequestError(Exception):
    """The request cannot be carried out as it is (exit status 2).

    Args:
        message: What is wrong and what to do, in one line.
        where: The file, option or component in which it stands.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(one_line(f"{where}: {message}" if where else message, _LONGEST))


class StoreError(Exception):
    """The store could not be read or written (a full disk, missing permission); what is in it stays.

    Args:
        message: What is wrong and what to do, in one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the known names, or at all of them where none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"known: {', '.join(options)}" if options else "none is known"


def explain(error: Exception) -> str:
    """An error in one line: its type, its message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return one_line(f"{type(error).__name__}: {one_line(error, 500)}{place}", _LONGEST)
