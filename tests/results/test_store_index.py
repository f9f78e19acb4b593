from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from board_cells import A_MODEL, CLEAN, cell, outcome
from stores import LABELS, finished, flip

from robbench.core.errors import Damaged
from robbench.results import store_index
from robbench.results.store import IMAGES, Store
from robbench.results.store_index import StoreIndex

ARCHIVE = b"PK\x05\x06" + 18 * b"\0"
"""An empty zip archive."""


class Counted(Store):
    """Counts how often a cell is read."""

    looks: ClassVar[list[str]] = []

    def check_cell(self, key: str, keeps: object = ()) -> bool:
        self.looks.append(key)
        return super().check_cell(key, keeps)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with a cell and a model, on a file system that tells at once when a file was written."""
    monkeypatch.setattr(store_index, "SETTLED", -60.0)
    monkeypatch.setattr(Counted, "looks", [])
    made = Counted(tmp_path)
    record, result = finished(cell(A_MODEL, CLEAN, outcome("clean", LABELS)))
    made.write_cell(record, result, {"examples.npz": ARCHIVE})
    made.write_model("m", {}, b"weights", "epoch\n1\n")
    return made


def key(store: Store) -> str:
    return store.keys("cells")[0]


def known(store: Store) -> StoreIndex:
    """An index that knows the store, read anew."""
    index = StoreIndex.of(store)
    assert index.has_cell(key(store))
    assert index.has_model("m")
    index.save()
    Counted.looks.clear()
    return StoreIndex.of(store)


def test_what_has_not_changed_is_not_read_again(store: Store) -> None:
    first = StoreIndex(store).cell(key(store))
    index = known(store)
    assert index.cell(key(store)) == first is not None
    assert index.status(key(store)) == "done"
    assert not Counted.looks


def rewritten(path: Path) -> None:
    """Damage a file and give it back its size and its time."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("damage", [flip, rewritten, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["record.json", "outcome.npz", "examples.npz"])
def test_whatever_happens_to_a_file_is_noticed(store: Store, name: str, damage: Callable[[Path], object]) -> None:
    index = known(store)
    damage(store.cell_dir(key(store)) / name)
    if name == "examples.npz" and not (store.cell_dir(key(store)) / name).exists():
        assert index.cell(key(store))  # only figures are drawn from it
    else:
        assert not index.has_cell(key(store))
    assert Counted.looks


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
def test_a_damaged_model_is_noticed(store: Store, name: str) -> None:
    index = known(store)
    flip(store.model_dir("m") / name)
    with pytest.raises(Damaged):
        index.model("m")


def test_a_file_of_another_cell_does_not_pass(store: Store) -> None:
    index = known(store)
    other, result = finished(cell(A_MODEL, CLEAN, outcome("clean", LABELS), seed=1))
    store.write_cell(other, result)
    os.replace(store.cell_dir(other.key) / "record.json", store.cell_dir(key(store)) / "record.json")
    assert not index.has_cell(key(store))


def test_a_cell_that_lacks_what_is_asked_for_is_not_finished(store: Store) -> None:
    index = known(store)
    assert index.cell(key(store), (IMAGES,)) is None
    assert index.cell(key(store))


def test_what_was_written_a_moment_ago_is_looked_at_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be written twice within one tick of the file system's clock."""
    monkeypatch.setattr(store_index, "SETTLED", 60.0)
    index = StoreIndex(store)
    assert index.has_cell(key(store))
    assert not index.known


def emptied(path: Path) -> None:
    path.write_text("{}", encoding="utf-8")


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip, Path.unlink, emptied, made_a_folder])
def test_without_its_index_a_store_is_looked_at_whole(store: Store, damage: Callable[[Path], object]) -> None:
    content = known(store).cell(key(store))
    damage(store.root / "index.json")
    again = StoreIndex.of(store)
    assert again.cell(key(store)) == content
    assert Counted.looks
    again.save()
    assert known(store).known


def test_two_writers_lose_nothing_of_each_other(store: Store) -> None:
    first, second = StoreIndex.of(store), StoreIndex.of(store)
    assert first.has_cell(key(store))
    assert second.has_model("m")
    first.save()
    second.save()
    assert len(StoreIndex.of(store).known) == 2


def test_what_is_gone_is_forgotten(store: Store) -> None:
    index, gone = known(store), key(store)
    store.remove("cells", gone)
    assert not index.has_cell(gone)
    index.changed = True
    index.save()
    assert list(StoreIndex.of(store).known) == ["models/m"]


def test_a_store_that_cannot_be_written_to_is_read_all_the_same(store: Store) -> None:
    index = StoreIndex.of(store)
    (store.root / "index.json").mkdir()
    assert index.has_cell(key(store))
    index.save()
