"""Errors that are a user's to mend, each one line that says what was wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from robbench.core.safe_text import one_line

T = TypeVar("T")

_LONGEST = 20_000
"""Letters of a message, of which texts of others can be a part."""


_NAMED = 60
"""So many known names a hint lists: libraries of networks have a thousand."""


class RequestError(Exception):
    """The request cannot be carried out as it is (exit status 2).

    Args:
        message: What is wrong and what to do, in one line.
        where: The file, option or component in which it stands; not said again where the message begins with it.
    """

    def __init__(self, message: str, where: str = "") -> None:
        said = not where or message.startswith((f"{where}:", f"{where} "))
        super().__init__(one_line(message if said else f"{where}: {message}", _LONGEST))


class StoreError(Exception):
    """The store could not be read or written (a full disk, missing permission); what is in it stays.

    Args:
        message: What is wrong and what to do, in one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, _LONGEST))


class Breach(Exception):
    """A component broke a rule; its cell fails.

    Args:
        rule: The rule, in a few words.
        detail: What was found.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail

    def __reduce__(self) -> tuple[type[Breach], tuple[str, str]]:
        """Pickle both arguments, so that a breach can come from a worker."""
        return Breach, (self.rule, self.detail)


class Damaged(StoreError):
    """A stored file is not what was written; the next run makes it again.

    Args:
        path: The file.
        reason: How that shows.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}; robbench run with its grid makes it again")
        self.path, self.reason = path, one_line(reason)

    def __reduce__(self) -> tuple[type[Damaged], tuple[Path, str]]:
        """Pickle both arguments, so that it can come from a worker."""
        return Damaged, (self.path, self.reason)


def warn(message: str) -> None:
    """Tell the user of something that does not end the command: one line on standard error."""
    with contextlib.suppress(OSError, ValueError):
        print(f"robbench: {one_line(message, _LONGEST)}", file=sys.stderr, flush=True)


class _Lines(logging.Handler):
    """Shows records as ``warn`` does."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show what libraries warn of as ``warn`` does, in one line and without their source code beside it."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        warn(f"{message} ({Path(filename).name}:{lineno})")

    last = logging.lastResort
    with warnings.catch_warnings():
        warnings.showwarning = show
        logging.lastResort = _Lines(logging.WARNING)
        try:
            yield
        finally:
            logging.lastResort = last


def unless_damaged(question: Callable[[], T], otherwise: T, consequence: str) -> T:
    """The answer to a question about the store; where a file is damaged, a warning and another answer.

    Args:
        question: Reads the store.
        otherwise: What a damaged file amounts to.
        consequence: What happens then, for the warning.
    """
    try:
        return question()
    except Damaged as error:
        warn(f"{error.path} is damaged: {error.reason}; {consequence}")
        return otherwise


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the known names, whatever its case, or at the first of them where none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    # MNIST, as torchvision calls it, has no letter in common with mnist.
    by_case = {option.casefold(): option for option in reversed(options)}
    near = [by_case[name.casefold()]] if name.casefold() in by_case else near
    near = near or [by_case[found] for found in difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=0.5)]
    if near:
        return f'did you mean "{near[0]}"?'
    left = len(options) - _NAMED
    more = f" and {left:,} more" if left > 0 else ""
    return f"known: {', '.join(options[:_NAMED])}{more}" if options else "none is known"


def trace_of(error: BaseException) -> str:
    """The traceback of an error as Python shows it, for whoever asks for it; its end where it is very long."""
    return "".join(traceback.format_exception(error)).rstrip()[-_LONGEST:]


def explain(error: BaseException) -> str:
    """An error in one line: its type, its message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    message, home = str(error), os.path.expanduser("~")
    # What happens to a cell is published; a home directory whose name has spaces could not be told from a text later.
    message = message.replace(f"{home}{os.sep}", f"~{os.sep}") if home != os.sep else message
    return one_line(f"{type(error).__name__}: {one_line(message, 500)}{place}", _LONGEST)
