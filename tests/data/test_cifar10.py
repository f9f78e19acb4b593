from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import tiny

from robbench.cli.main import main
from robbench.data.datasets.cifar10 import CLASS_NAMES
from robbench.results.schema import Record
from robbench.results.store import Store

DATA = os.environ.get("ROBBENCH_DATA")

pytestmark = pytest.mark.skipif(
    DATA is None or not any((Path(DATA) / name).is_dir() for name in ("cifar10", "cifar-10-batches-py", "train")),
    reason="needs CIFAR-10 in the directory that the variable ROBBENCH_DATA names",
)

SMALL = f"cifar10[train_counts={'|'.join(['40'] * 10)}]"
CONDITIONS = ("clean", "perturbation", "fgsm@ref", "pgd[steps=2]@each")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which both data sets were run, so that the images are decoded once."""
    folder = tmp_path_factory.mktemp("cifar10")
    models = ["architecture = 'small-cnn'", "architecture = 'small-cnn'\nobjective = 'angular'"]
    for name, dataset, rows in (("plain", SMALL, models), ("imbalanced", "cifar10-imbalanced", models[:1])):
        grid = folder / f"{name}.toml"
        text = tiny.grid_text(rows, CONDITIONS, "epochs = 1, batch_size = 64, lr = 0.002", dataset)
        grid.write_text(text, encoding="utf-8")
        words = ["run", "--grid", str(grid), "--out", str(folder / "runs"), "--limit", "60", "--workers", "1"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("robbench.execution.local.cores", lambda: 1)
            assert main([*words, "--device", "cpu"]) == 0
    return Store(folder / "runs")


def records(store: Store, grid: str) -> list[Record]:
    (note,) = [note for note in store.boards().values() if note["grid"] == grid]
    found = [store.record(key) for key in note["cells"]]
    return [record for record in found if record is not None]


@pytest.mark.parametrize(("grid", "rows"), [("plain", 2), ("imbalanced", 1)])
@pytest.mark.end_to_end
def test_a_small_grid_ends_in_a_board(store: Store, grid: str, rows: int) -> None:
    made = records(store, grid)
    assert len(made) == rows * 6
    assert {record.status for record in made} == {"done"}
    (board,) = [board for board, note in store.boards().items() if note["grid"] == grid]
    folder = store.root / "leaderboards" / board
    with (folder / "leaderboard.csv").open() as file:
        assert list(csv.DictReader(file))
    assert (folder / "README.md").read_text().startswith("#")
    for record in made:
        outcome = store.outcome(record)
        assert outcome is not None
        assert len(outcome) == 60
        assert outcome.linf.max() <= 1
        if record.spec.condition.kind == "attack":
            eps = record.spec.condition.stages[0].eps
            assert eps is not None
            assert outcome.linf.max() <= eps * (1 + 1e-5) + 1e-6


def test_the_plain_split_is_the_published_one(store: Store) -> None:
    spec = records(store, "plain")[0].spec.dataset
    assert spec.class_names == CLASS_NAMES
    assert spec.counts["train"] == (40,) * 10
    assert spec.counts["test"] == (1000,) * 10


def test_the_imbalanced_variant_has_the_counts_of_the_study(store: Store) -> None:
    spec = records(store, "imbalanced")[0].spec.dataset
    assert spec.class_names == ("automobile", "truck", "cat")
    assert spec.counts["train"] == (4949, 466, 210)
    assert spec.counts["test"] == (551, 51, 23)
    assert spec.counts["gallery"] == (200, 200, 200)


def test_the_sample_keeps_the_proportions_of_the_classes(store: Store) -> None:
    for grid, expected in (("plain", [6] * 10), ("imbalanced", [53, 5, 2])):
        outcome = store.outcome(records(store, grid)[0])
        assert outcome is not None
        np.testing.assert_allclose(np.bincount(outcome.labels), expected, atol=1)


def test_images_are_decoded_once(store: Store) -> None:
    assert len(list(Path(store.root / "data").glob("*/images.npy"))) == 1
