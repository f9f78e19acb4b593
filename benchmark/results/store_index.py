"""Which entries of a store were found whole, so that what has not changed since is not read again. Needs no torch.

An entry is told unchanged by sizes, times and inodes of its files. No figure rests on that: whoever reads one compares
the seal of its file. The index is one file, replaced whole; what two writers lose of each other's is looked at again,
as all is where it is removed, damaged or copied with its store.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from robbench.core.errors import Damaged, StoreError
from robbench.core.sealed import hash_of
from robbench.results.schema import digest
from robbench.results.store import EMBEDDINGS, EXAMPLES, HISTORY, IMAGES, MODEL, OUTCOME, RECORD, WEIGHTS, Store

SETTLED = 2.0
"""Seconds after which a file that is written again has another time, whatever the file system."""
_CELL = (RECORD, OUTCOME, EXAMPLES, EMBEDDINGS)
_MODEL = (MODEL, WEIGHTS, HISTORY, EMBEDDINGS)


@dataclass
class StoreIndex:
    """What is known of the finished entries of a store.

    Attributes:
        store: The store.
        known: By entry, the state of its files when they were read, and the hash of their content.
        changed: Whether that is more than what is kept.
    """

    store: Store
    known: dict[str, Any] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def of(cls, store: Store) -> Self:
        """The index of a store as it is kept there; an empty one where it is not or is damaged."""
        return cls(store, _kept(store))

    def cell(self, key: str, keeps: Collection[str] = ()) -> str | None:
        """The hash of what a cell consists of, or None where it needs more work; see ``Store.check_cell``.

        Raises:
            Damaged: If one of its files is not what was written.
        """
        files = [*_CELL, *([IMAGES] if IMAGES in keeps else [])]
        name = "+".join([f"cells/{key}", *sorted(keeps)])
        return self._whole(name, self.store.cell_dir(key), files, lambda: self.store.check_cell(key, keeps))

    def model(self, key: str) -> str | None:
        """The hash of what a trained model consists of, with its embeddings; None where it is not trained.

        Raises:
            Damaged: If one of its files is not what was written.
        """

        def check() -> bool:
            self.store.check_embeddings(key)
            return self.store.check_model(key)

        return self._whole(f"models/{key}", self.store.model_dir(key), _MODEL, check)

    def has_cell(self, key: str, keeps: Collection[str] = ()) -> bool:
        """Whether a cell needs no more work; a failed or damaged one does."""
        with contextlib.suppress(Damaged):
            return self.cell(key, keeps) is not None
        return False

    def has_model(self, key: str) -> bool:
        """Whether a model is trained and nothing of it is damaged."""
        with contextlib.suppress(Damaged):
            return self.model(key) is not None
        return False

    def status(self, key: str) -> str:
        """What is recorded of a cell: ``done``, ``failed`` or ``unsupported``; ``to do`` where nothing or damaged.

        Its other files are not looked at, and nothing rests on the answer.
        """
        folder = self.store.cell_dir(key)
        known = self.known.get(f"cells/{key}")
        if known is not None and known[0] == digest([_state(folder / file) for file in _CELL]):
            return "done"
        with contextlib.suppress(Damaged):
            return str((self.store.read(folder / RECORD) or {}).get("status", "to do"))
        return "to do"

    def save(self) -> None:
        """Keep what was found, beside what others have kept meanwhile, without entries that are gone."""
        path = _path(self.store)
        if not self.changed and path.is_file():
            return
        known = _kept(self.store) | self.known
        there = {f"{kind}/{key}" for kind in ("cells", "models") for key in self.store.keys(kind)}
        with contextlib.suppress(StoreError):  # going without it only takes time
            self.store.write(path, {name: found for name, found in known.items() if name.partition("+")[0] in there})
            self.changed = False

    def _whole(self, name: str, folder: Path, files: Sequence[str], check: Callable[[], bool]) -> str | None:
        began = time.time()
        states = [_state(folder / file) for file in files]
        state = digest(states)
        known = self.known.get(name)
        if known is not None and known[0] == state:
            return str(known[1])
        if not check():
            return None
        content = digest([hash_of((folder / file).read_bytes()) for file in files if (folder / file).is_file()])
        times = [at for found in states if found for at in found[2:]]
        if max(times, default=0) < (began - SETTLED) * 1e9:
            self.known[name] = [state, content]
            self.changed = True
        return content


def _path(store: Store) -> Path:
    return store.root / "index.json"


def _kept(store: Store) -> dict[str, Any]:
    try:
        return store.read_new(_path(store)) or {}
    except Damaged:
        return {}


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
