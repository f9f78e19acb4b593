from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, Cell, cell, model, outcome

from robbench.core.errors import StoreError
from robbench.leaderboards.artifact_reader import read_materials
from robbench.results.store import Store

A, B = model("a"), model("b")
LABELS = [0, 1, 0, 1]
HEADER = "epoch,lr,passes,train_loss,train_accuracy,validation_loss,validation_accuracy,validation_balanced_accuracy"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def cells() -> list[Cell]:
    made = [cell(row, CLEAN, outcome("clean", LABELS), seed=seed) for row in (A, B) for seed in (0, 1)]
    return [*made, cell(A, FGSM, outcome("attack", LABELS, final=[1, 1, 0, 1]))]


def keep(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def keep_history(store: Store, key: str, *lines: str) -> Path:
    path = store.model_dir(key) / "history.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def examples(n: int = 2, **more: Any) -> dict[str, Any]:
    images = np.arange(n * 12, dtype=np.uint8).reshape(n, 3, 2, 2)
    whole = {
        "ids": np.arange(n),
        "labels": np.zeros(n, np.int64),
        "images": images,
        "attacked": images / np.float32(255),
    }
    return whole | {"clean": np.zeros(n, np.int64), "final": np.ones(n, np.int64)} | more


def test_a_store_without_them_has_no_materials(store: Store, cells: list[Cell]) -> None:
    for exhibit in (None, "absent"):
        found = read_materials(store, exhibit, cells)
        assert found.samples is None
        for part in (found.histories, found.examples, found.train, found.test):
            assert not part


def test_histories_are_found_by_row_and_seed(store: Store, cells: list[Cell]) -> None:
    # The cells of a row share the key of its model here, whatever the seed.
    keep_history(store, cells[0][0].spec.model_key, "1,0.1,60,2.5,0.5,2.25,0.25,0.3", "2,0.1,60,inf,0.1,nan,0.0,0.0")
    found = read_materials(store, None, cells).histories
    assert set(found) == {("a", 0), ("a", 1)}
    history = found["a", 1]
    assert history.epochs.tolist() == [1, 2]
    assert history.train_loss.tolist() == [2.5, float("inf")]
    assert history.validation_loss[0] == 2.25
    assert np.isnan(history.validation_loss[1])
    assert history.train_accuracy.tolist() == [0.5, 0.1]
    assert history.validation_accuracy.tolist() == [0.25, 0.0]


def test_arrays_are_found_by_row_condition_and_seed(store: Store, cells: list[Cell]) -> None:
    scores = np.full((2, 2), 0.5, np.float32)
    keep(store.cell_dir(cells[-1][0].key) / "examples.npz", **examples(clean_scores=scores, final_scores=scores))
    embedded = {"ids": np.arange(3), "labels": np.array([0, 1, 0]), "embeddings": np.ones((3, 4), np.float32)}
    keep(store.cell_dir(cells[1][0].key) / "embeddings.npz", **embedded)
    keep(store.model_dir(cells[2][0].spec.model_key) / "embeddings.npz", **embedded)
    keep(store.root / "exhibits" / "digest.npz", images=examples()["images"], labels=np.array([1, 0]))
    found = read_materials(store, "digest", cells)
    assert set(found.examples) == {("a", "fgsm@0.1", 0)}
    read = found.examples["a", "fgsm@0.1", 0]
    assert np.array_equal(read.images, examples()["images"])
    assert read.final_scores is not None
    assert np.array_equal(read.final_scores, scores)
    assert set(found.test) == {("a", "clean", 1)}
    assert np.array_equal(found.test["a", "clean", 1].embeddings, embedded["embeddings"])
    assert set(found.train) == {("b", 0), ("b", 1)}
    assert found.samples is not None
    assert found.samples.labels.tolist() == [1, 0]
    with pytest.raises(KeyError):
        found.test["b", "clean", 0]


def test_examples_of_older_stores_have_no_scores_and_newer_arrays_are_left_out(store: Store, cells: list[Cell]) -> None:
    keep(store.cell_dir(cells[-1][0].key) / "examples.npz", **examples(later=np.zeros(5)))
    read = read_materials(store, None, cells).examples["a", "fgsm@0.1", 0]
    assert read.clean_scores is None
    assert read.final_scores is None


def test_what_is_not_asked_for_is_not_read(store: Store, cells: list[Cell]) -> None:
    path = store.cell_dir(cells[-1][0].key) / "examples.npz"
    keep(path, **examples())
    path.write_bytes(b"damaged")
    assert len(read_materials(store, None, cells).examples) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"damaged",
        "cut",
        {name: array for name, array in examples().items() if name != "labels"},
        examples(final=np.zeros(5, np.int64)),
        examples(ids=np.array([object(), object()])),
    ],
    ids=["empty", "not an npz", "cut off", "an array missing", "lengths differ", "pickled objects"],
)
def test_damaged_arrays_are_an_error_that_names_the_file(store: Store, cells: list[Cell], damage: object) -> None:
    path = store.cell_dir(cells[-1][0].key) / "examples.npz"
    keep(path, **(damage if isinstance(damage, dict) else examples()))
    if not isinstance(damage, dict):
        path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:300])
    found = read_materials(store, None, cells).examples
    with pytest.raises(StoreError, match=r"examples\.npz(: .+; remove it| is damaged: .+; robbench run)"):
        found["a", "fgsm@0.1", 0]


@pytest.mark.parametrize("line", ["", "1,0.1,60,much,0.5,2.25,0.25,0.3", "1,0.1,60"])
def test_damaged_histories_are_an_error_that_names_the_file(store: Store, cells: list[Cell], line: str) -> None:
    keep_history(store, cells[0][0].spec.model_key, *filter(None, [line]))
    with pytest.raises(StoreError, match=r"history\.csv: .+; remove it"):
        read_materials(store, None, cells).histories["a", 0]


def test_a_damaged_exhibit_is_an_error_that_names_it(store: Store, cells: list[Cell]) -> None:
    keep(store.root / "exhibits" / "digest.npz", images=np.zeros((2, 3, 2, 2), np.uint8), labels=np.zeros(3))
    with pytest.raises(StoreError, match=r"digest\.npz: .+; remove it"):
        read_materials(store, "digest", cells)
