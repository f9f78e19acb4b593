"""From two classes to a thousand: planned, trained, attacked, put on a board, published and read again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from board_cells import A_MODEL, CLEAN, cell, dataset
from board_cells import outcome as made_up

from robbench.core.registry import Registry
from robbench.leaderboards import board_data, write_board
from robbench.leaderboards.archive import read_archive, write_archive
from robbench.leaderboards.tables.classes import predictions
from robbench.results.schema import MANY_CLASSES, BoardNote, CellResult
from robbench.results.verification import verify

CONDITIONS = ("clean", "fgsm@ref", "pgd[steps=2]@ref", "fgsm@l2:ref", "union@linf:ref|l2:ref")
_MEBI = 2**20


def carried_out(folder: Path, classes: int) -> Sequence[CellResult]:
    """The cells of a small network on noisy prototypes, a few images of each class."""
    rng = np.random.default_rng(classes)
    labels = np.repeat(np.arange(classes), 4 if classes > 10 else 12)
    prototypes = rng.integers(0, 256, (classes, 1, 8, 8))
    noisy = prototypes[labels] + rng.normal(0, 20, (len(labels), 1, 8, 8))
    names = np.array([f"thing {number}" for number in range(classes)])
    np.savez(folder / "d.npz", images=noisy.clip(0, 255).astype(np.uint8), labels=labels, class_names=names)
    dataset = f"arrays[path={folder / 'd.npz'}]"
    return tiny.carried_out(tiny.make(folder / "grid", [""], CONDITIONS, "epochs = 2", dataset=dataset))


@pytest.mark.parametrize("classes", [2, 3, 8, 43, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_board_of_so_many_classes_is_whole_and_small(classes: int, tmp_path: Path) -> None:
    cells = carried_out(tmp_path, classes)
    before = time.process_time()
    files = write_board(tmp_path / "board", BoardNote(grid="tiny", title=""), cells)
    assert time.process_time() - before < 60
    sizes = {path.name: path.stat().st_size for path in files}
    assert sum(sizes.values()) < 8 * _MEBI
    assert sizes["index.html"] < _MEBI
    assert sizes["README.md"] < 40_000
    page = (tmp_path / "board" / "index.html").read_text(encoding="utf-8")
    assert ("Of " in page and "per_class.csv holds all" in page) == (classes > MANY_CLASSES)
    assert ("Most frequent confusions" in page) == (classes > MANY_CLASSES)
    per_class = (tmp_path / "board" / "per_class.csv").read_text(encoding="utf-8")
    assert all(f"thing {number}," in per_class for number in range(classes))
    for record, outcome in cells:
        assert outcome is not None
        assert len(record.confusion) == (classes if classes <= MANY_CLASSES else 0)
        assert np.unique(outcome.labels).tolist() == list(range(classes))
        assert len(record.to_json()) < 4 * _MEBI
    verify(cells, Registry(installed=False), str)
    write_archive(tmp_path / "board", cells)
    again = read_archive(tmp_path / "board")
    assert [record.metrics for record, _ in again] == [record.metrics for record, _ in cells]
    verify(again, Registry(installed=False), str)


def test_matrices_of_many_classes_that_an_earlier_version_kept_are_verified(tmp_path: Path) -> None:
    cells = carried_out(tmp_path, MANY_CLASSES + 1)
    record, outcome = cells[0]
    assert outcome is not None
    counts = np.zeros((MANY_CLASSES + 1,) * 2, dtype=np.int64)
    np.add.at(counts, (outcome.labels, outcome.final), 1)
    kept = record.model_copy(update={"confusion": tuple(map(tuple, counts.tolist()))})
    verify([(kept, outcome), *cells[1:]], Registry(installed=False), str)


def test_of_many_classes_the_most_frequent_confusions_are_shown() -> None:
    labels = np.repeat(np.arange(60), 5)
    final = labels.copy()
    final[0:4], final[5:8], final[10] = 7, 59, 3
    names = [f"thing {number}" for number in range(60)]
    found = made_up("clean", labels, final, k=60)
    made = board_data("", "grid", [cell(A_MODEL, CLEAN, found, data=dataset(names))])
    (row,) = made.rows
    assert row.cells["clean"].confused == ((0, 7, 4, 5), (1, 59, 3, 5), (2, 3, 1, 5))
    (sheet,) = predictions(made, row)
    assert [line.cells[1].text for line in sheet.lines] == ["thing 7", "thing 59", "thing 3"]
    assert [line.cells[3].text for line in sheet.lines] == ["80.0", "60.0", "20.0"]
