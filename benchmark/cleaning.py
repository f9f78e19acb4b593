"""What a store holds, and what of it no record needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robbench.store import Store


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
    """Remove what no record needs: cells of no board, models of no remaining cell, unfinished files.

    Models that a remaining one was warm-started from stay, since they would be needed to explain it.

    Args:
        store: The store.
        dry_run: Whether to remove nothing.

    Raises:
        RequestError: If the store is in use.
        StoreError: If a manifest or a record cannot be read.
    """
    with store.lock(exclusive=True):
        wanted = {
            key for manifest in store.manifests().values() for keys in manifest["boards"].values() for key in keys
        }
        records = [record for key in sorted(wanted) if (record := store.record(key)) is not None]
        models = {record.spec.model_key for record in records}
        starts = {store.model_info(key).get("start") for key in models if store.has_model(key)}
        models |= {key for key in starts if key}
        holdings = [_sweep(store, "cells", wanted, dry_run), _sweep(store, "models", models, dry_run)]
        leftovers = list(_leftovers(store.root))
        size = sum(path.stat().st_size for path in leftovers)
        if not dry_run:
            for path in leftovers:
                path.unlink(missing_ok=True)
    data = [path for path in (store.root / "data").rglob("*") if path.is_file()]
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
    folders = (root / name for name in ("cells", "data", "grids", "leaderboards", "models"))
    found = itertools.chain(root.glob(".*.tmp"), *(folder.rglob(".*.tmp") for folder in folders))
    return (path for path in found if path.is_file())
