"""Runs that are killed, and what of a store must not depend on that."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> Iterator[int]:
    """Processes below one, as long as it lives."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_end(workers: list[int]) -> None:
    until = time.monotonic() + 300  # a worker that still starts sees it when it has started
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker goes on after its run has ended"
        time.sleep(0.05)


def finished_cells(out: Path) -> dict[str, tuple[int, int]]:
    """When which file of a finished cell was written."""
    found = {}
    for path in out.glob("cells/*/record.json"):
        if json.loads(path.read_text(encoding="utf-8"))["status"] == "done":
            for file in path.parent.glob("[!.]*"):
                found[str(file)] = (file.stat().st_ino, file.stat().st_mtime_ns)
    return found


def trained_models(out: Path) -> dict[str, tuple[int, int]]:
    files = (file for path in out.glob("models/*/model.json") for file in (path, path.with_name("weights.safetensors")))
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def repeatable(out: Path) -> dict[str, bytes]:
    """The files of a store that must not depend on how often the run was killed."""
    patterns = ("leaderboards/**/*", "cells/*/*.npz", "models/*/*.safetensors", "models/*/history.csv", "boards/*")
    paths = (
        path for pattern in patterns for path in out.glob(pattern) if path.is_file() and path.name != "timings.csv"
    )
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}
