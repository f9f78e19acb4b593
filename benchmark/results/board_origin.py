"""What a board follows from, as one hash: the same hash, the same board."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.core.errors import Damaged
from robbench.core.registry import Registry
from robbench.core.sealed import hash_of
from robbench.results.provenance import LIBRARIES, source_digest, versions
from robbench.results.schema import Record, digest
from robbench.results.store import HISTORY, RECORD, Store
from robbench.results.store_index import StoreIndex

_RENDERERS = ("matplotlib", "pillow", "jinja2")


@dataclass(frozen=True)
class BoardOrigin:
    """What a board follows from.

    Attributes:
        digest: Hash of its note, of the files that it is made from and of the code that makes it; empty where one of
            the files is damaged.
        missing: How many of its cells were not run yet.
        failed: Records of those that failed.
    """

    digest: str
    missing: int = 0
    failed: tuple[Record, ...] = ()

    @classmethod
    def now(cls, board: str, index: StoreIndex, registry: Registry, reload: float | None = None) -> BoardOrigin:
        """What a board of a store would follow from now.

        Args:
            board: The board's name.
            index: Of the store; what it knows is not read again.
            registry: The known figures.
            reload: Seconds after which its page loads itself again.
        """
        try:
            return _read(board, index, registry, reload)
        except Damaged:
            return cls("")


def _read(board: str, index: StoreIndex, registry: Registry, reload: float | None) -> BoardOrigin:
    store = index.store
    note = store.board(board)
    cells = {key: index.cell(key) for key in note["cells"]}
    unfinished = {key: record for key in cells if not cells[key] and (record := store.record(key))}
    cells |= {key: hash_of((store.cell_dir(key) / RECORD).read_bytes()) for key in unfinished}
    models = [index.model(key) or _history(store, key) for key in note["models"]]
    samples = store.read_archive(store.exhibit(str(note.get("exhibit"))))
    code = [source_digest(), versions((*LIBRARIES, *_RENDERERS)), [plugin.source for plugin in registry.plugins()]]
    return BoardOrigin(
        digest([note, cells, models, samples and hash_of(samples), code, reload]),
        missing=sum(content is None for content in cells.values()),
        failed=tuple(unfinished.values()),
    )


def _history(store: Store, key: str) -> str | None:
    """Hash of how a training went that came to no model, which boards show as well."""
    path = store.model_dir(key) / HISTORY
    return hash_of(store.content(path)) if path.is_file() else None
