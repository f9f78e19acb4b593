"""What runs tell of themselves in their store, for ``robbench status`` in another shell. Needs no torch.

A run writes how far it is into a file of its own, at most once a second, touches it as long as it lives, and removes it
in the end. Nothing rests on these files.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError

BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 20.0
"""Seconds without one after which a run was probably killed."""
_OFTEN = 1.0
_FOLDER = "running"


class Doing(BaseModel):
    """What is done for a model: its label, the activity, how far that is, and since when, in seconds of the epoch."""

    model_config = ConfigDict(frozen=True)

    model: str
    activity: str
    done: int = 0
    of: int = 0
    since: float


class RunState(BaseModel):
    """How far a run is.

    Attributes:
        grid: Name of its grid.
        host, pid: Where it runs.
        began: When, in seconds of the epoch.
        cells: How many cells the grid has.
        to_do: How many of them were to be done.
        finished: How many are finished since, failed ones among them.
        failed: How many failed.
        seconds_left: A forecast, None where there is none.
        doing: What is being done.
        silent: Seconds since its last sign of life.
    """

    model_config = ConfigDict(frozen=True)

    grid: str
    host: str
    pid: int
    began: float
    cells: int
    to_do: int
    finished: int = 0
    failed: int = 0
    seconds_left: float | None = None
    doing: tuple[Doing, ...] = ()
    silent: float = 0.0


def run_states(root: Path) -> dict[Path, RunState]:
    """What the runs of a store tell of themselves, the first begun first, by file; some may have been killed."""
    found: dict[Path, RunState] = {}
    for path in (root / _FOLDER).glob("[!.]*.json"):
        with contextlib.suppress(OSError, ValidationError):  # it has just ended, or is of another version
            state = RunState.model_validate_json(path.read_bytes())
            found[path] = state.model_copy(update={"silent": max(0.0, time.time() - path.stat().st_mtime)})
    return dict(sorted(found.items(), key=lambda item: item[1].began))


@contextlib.contextmanager
def announced(root: Path, state: Callable[[], RunState]) -> Iterator[Callable[[], None]]:
    """Tell how far a run is, as long as it goes on; gives what is to be called whenever something happened.

    Args:
        root: Directory of the store.
        state: How far the run is.
    """
    folder = root / _FOLDER
    for other, told in run_states(root).items():
        if told.silent > SILENCE:
            _remove(other)
    path, over = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json", threading.Event()
    written = -_OFTEN

    def tell() -> None:
        nonlocal written
        if time.monotonic() >= written + _OFTEN:
            with contextlib.suppress(StoreError):  # what cannot be kept either will say so
                write_atomically(path, json.dumps(state().model_dump(exclude={"silent"})) + "\n")
            written = time.monotonic()

    def touch() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    tell()
    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        over.set()
        thread.join()
        _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
