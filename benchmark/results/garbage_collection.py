"""Removes from a store what no board needs."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robbench.results.store import Store

_WRITTEN = ("boards", "cells", "data", "exhibits", "labels", "leaderboards", "models", "requests", "searches")


@dataclass(frozen=True)
class Holding:
    """A part of the store.

    Attributes:
        name: What it is.
        kept: Entries that stay, and their bytes.
        removed: Entries that no record needs, and their bytes.
    """

    name: str
    kept: tuple[int, int]
    removed: tuple[int, int]


def clean(store: Store, dry_run: bool) -> list[Holding]:
    """Remove what no board needs: cells and models of none, unfinished files.

    What an interrupted run has finished stays, since its boards are noted when it begins.

    Args:
        store: The store.
        dry_run: Whether to remove nothing.

    Raises:
        RequestError: If the store is in use.
        StoreError: If the note of a board cannot be read.
    """
    with store.lock(exclusive=True):
        notes = list(store.boards().values())
        cells = {key for note in notes for key in note["cells"]}
        models = {key for note in notes for key in note["models"]}
        holdings = [_sweep(store, "cells", cells, dry_run), _sweep(store, "models", models, dry_run)]
        leftovers = list(_leftovers(store.root))
        size = sum(path.stat().st_size for path in leftovers)
        if not dry_run:
            for path in leftovers:
                path.unlink(missing_ok=True)
            for folder in (store.root / "data").glob(".*"):
                shutil.rmtree(folder, ignore_errors=True)
    data = [path for path in (store.root / "data").glob("[!.]*/*") if path.is_file()]
    holdings.append(Holding("unfinished files", (0, 0), (len(leftovers), size)))
    holdings.append(Holding("decoded images", (len(data), sum(path.stat().st_size for path in data)), (0, 0)))
    return holdings


def _sweep(store: Store, kind: str, wanted: set[str], dry_run: bool) -> Holding:
    kept, removed = [0, 0], [0, 0]
    for key in store.keys(kind):
        total = kept if key in wanted else removed
        total[0] += 1
        total[1] += store.size(kind, key)
        if key not in wanted and not dry_run:
            store.remove(kind, key)
    return Holding(kind, (kept[0], kept[1]), (removed[0], removed[1]))


def _leftovers(root: Path) -> Iterator[Path]:
    # Only where the store writes: the directory may hold other things, too.
    folders = (root / name for name in _WRITTEN)
    found = itertools.chain(
        *(folder.rglob(name) for folder in folders for name in (".*.tmp", ".*.lock*")),
        root.glob(".*.tmp"),
        (root / "data").glob(".*/**/*"),
        _checkpoints(root),
    )
    # What lay where a file belongs was renamed, and may be a directory.
    files = (inside for path in found for inside in (path.rglob("*") if path.is_dir() else [path]))
    return (path for path in files if path.is_file())


def _checkpoints(root: Path) -> Iterator[Path]:
    return (path for path in root.glob("models/*/checkpoint.pt") if path.with_name("model.json").is_file())
