from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import A_MODEL, PGD, cell
from stores import B_MODEL, BOARD, LABELS, PICTURE, attacked, complaint, draw, files, fill, publish, row, whole, write

from robbench.evaluation.metrics._built_in import built_in_figures
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.leaderboards.figure_manifest import write_manifest
from robbench.results.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("made") / "runs", whole()).root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(made, tmp_path / "runs")))


# --- what is published


def test_a_published_board_is_made_again_from_what_stands_beside_it(store: Store, tmp_path: Path) -> None:
    draw(store)
    assert publish(store, tmp_path / "site") == 0
    folder, again = tmp_path / "site" / BOARD, tmp_path / "again"
    shutil.copytree(folder / "figures", again / "figures")
    cells = read_archive(folder)
    assert [record.key for record, _ in cells] == [record.key for record, _ in whole()]
    made = write_board(again, read_note(folder), cells, read_pictures(folder))
    names = {path.name for path in made}
    assert {"README.md", "leaderboard.csv", "per_class.csv", "leaderboard.json", "board.json"} <= names
    for path in made:
        assert path.read_bytes() == (folder / path.name).read_bytes()
        assert path.read_bytes() == (store.root / "leaderboards" / BOARD / path.name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {*names, "figures", "records.jsonl", "outcomes.npz"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "figures.json"}


def test_publishing_writes_nothing_to_the_store_and_the_same_twice(store: Store, tmp_path: Path) -> None:
    before = files(store.root)
    assert publish(store, tmp_path / "site") == 0
    first = files(tmp_path / "site")
    assert publish(store, tmp_path / "site") == 0
    assert files(tmp_path / "site") == first
    assert files(store.root) == before


def test_other_files_of_the_directory_stay(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "mine").mkdir(parents=True)
    (site / "mine" / "notes.txt").write_text("keep")
    (site / "README.md").write_text("# By hand\n")
    assert publish(store, site) == 0
    assert (site / "README.md").read_text() == "# By hand\n"
    assert (site / "mine" / "notes.txt").read_text() == "keep"
    assert {path.name for path in site.iterdir()} == {"mine", "README.md", "index.html", BOARD}


def test_the_directory_lists_all_its_boards(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert publish(store, site) == 0
    (site / BOARD).rename(site / "older")
    assert publish(store, site) == 0
    page, listing = (site / "index.html").read_text(), (site / "README.md").read_text()
    for board in (BOARD, "older"):
        assert f"{board}/index.html" in page
        assert f"({board}/README.md)" in listing


def test_a_board_of_the_directory_that_cannot_be_read_is_named_and_the_rest_is_published(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    (site / "broken").mkdir(parents=True)
    (site / "broken" / "board.json").write_text("{")
    assert "broken" in complaint(publish(store, site), capsys)
    assert (site / BOARD / "README.md").is_file()


def test_only_the_boards_of_some_grids(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "small" in complaint(publish(store, tmp_path / "site", "--grid", "smal"), capsys, 2)
    assert publish(store, tmp_path / "site", "--grid", "small") == 0
    assert (tmp_path / "site" / BOARD).is_dir()


# --- what is refused


def edit_record(store: Store, change: Callable[[dict[str, object]], object], place: int = 2) -> None:
    path = store.cell_dir(whole()[place][0].key) / "record.json"
    data = store.read(path)
    assert data is not None
    change(data)
    store.write(path, data)


def edit_board(store: Store, name: str, old: str, new: str) -> None:
    path = store.root / "leaderboards" / BOARD / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap_outcome(store: Store) -> None:
    """Another outcome, with the hash in the record adapted, but not the figures."""
    record = store.record(whole()[2][0].key)
    assert record is not None
    store.write_cell(record, attacked(21))


def bad_array(**arrays: np.ndarray) -> Callable[[Store], object]:
    return lambda store: store.write_cell(whole()[2][0], replace(attacked(20), **arrays))  # type: ignore[arg-type]


def list_twice(store: Store) -> None:
    path = store.root / "boards" / f"{BOARD}.json"
    note = store.board(BOARD)
    note["cells"].append(note["cells"][0])
    store.write(path, note)


KEY = whole()[2][0].key
TAMPERING: dict[str, tuple[Callable[[Store], object], tuple[str, ...]]] = {
    "a metric": (
        lambda store: edit_record(store, lambda data: data["metrics"].update(robust_accuracy=[0.75, 0.6, 0.9, 40])),  # type: ignore[attr-defined]
        ("record.json", KEY, 'metric "robust_accuracy"', "0.75 (0.6 to 0.9) of 40", "0.5 (0.35"),
    ),
    "an interval": (
        lambda store: edit_record(store, lambda data: data["metrics"]["accuracy"].__setitem__(1, 0.5)),  # type: ignore[index]
        ("record.json", KEY, 'metric "accuracy"'),
    ),
    "a metric left out": (
        lambda store: edit_record(store, lambda data: data["metrics"].pop("accuracy")),  # type: ignore[attr-defined]
        ("record.json", KEY, 'metric "accuracy"', "nothing"),
    ),
    "a confusion matrix": (
        lambda store: edit_record(store, lambda data: data.update(confusion=[[20, 0], [0, 20]])),
        ("record.json", KEY, "row 0 of the confusion matrix", "[20, 0]".replace("[", "(").replace("]", ")")),
    ),
    "passes": (
        lambda store: edit_record(store, lambda data: data["costs"].update(forwards=1.0)),  # type: ignore[attr-defined]
        ("record.json", KEY, "forward passes", "1.0", "120.0"),
    ),
    "an outcome": (swap_outcome, ("record.json", KEY, "0.525")),
    "bytes of an outcome": (
        lambda store: (store.cell_dir(KEY) / "outcome.npz").write_bytes(attacked(21).to_bytes()),
        ("outcome.npz", KEY, "its content is not what was written there; robbench run"),
    ),
    "no outcome": (lambda store: (store.cell_dir(KEY) / "outcome.npz").unlink(), ("outcome.npz", KEY)),
    "a record of another cell": (
        lambda store: shutil.copy(store.cell_dir(whole()[1][0].key) / "record.json", store.cell_dir(KEY)),
        ("record.json", KEY, "its content is not what was written there"),
    ),
    "a class that is not there": (bad_array(final=np.full(40, 7)), ("record.json", KEY, "final", "classes")),
    "decisions of other weights": (
        bad_array(clean=np.where(np.arange(40) == 7, 0, LABELS)),
        ("record.json", KEY, "the clean prediction of sample 7 is not that of other cells of the same model"),
    ),
    "a number in the markdown": (
        lambda store: edit_board(store, "README.md", "62.5 % worst", "92.5 % worst"),
        ("README.md: line", "92.5", "62.5"),
    ),
    "a number in the CSV": (
        lambda store: edit_board(store, "leaderboard.csv", ",0.5,", ",0.9,"),
        ("leaderboard.csv: line", "0.9", "0.5"),
    ),
    "a number in the JSON": (
        lambda store: edit_board(store, "leaderboard.json", "[0.5,", "[0.9,"),
        ("leaderboard.json: line", "0.9", "0.5"),
    ),
    "a file": (
        lambda store: (store.root / "leaderboards" / BOARD / "per_class.csv").unlink(),
        ("per_class.csv is missing",),
    ),
    "a record": (lambda store: shutil.rmtree(store.cell_dir(KEY)), ("README.md: line",)),
    "a cell listed twice": (list_twice, (f"{BOARD}.json", "listed twice")),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_what_does_not_follow_is_refused_and_nothing_is_written(
    what: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper, parts = TAMPERING[what]
    tamper(store)
    shown = complaint(publish(store, tmp_path / "site"), capsys)
    for part in (BOARD, *parts):
        assert part in shown
    assert not (tmp_path / "site").exists()


def test_intervals_of_an_earlier_version_are_computed_again(store: Store, tmp_path: Path) -> None:
    def age(data: dict[str, object], **figures: list[float]) -> None:
        data["metrics_digest"] = "0" * 20
        data["metrics"].update(figures)  # type: ignore[attr-defined]

    edit_record(store, lambda data: age(data, balanced_robust_accuracy=[0.5, 0.4, 0.6, 40]))
    assert publish(store, tmp_path / "site") == 0
    (found,) = (cell for cell in read_archive(tmp_path / "site" / BOARD) if cell[0].key == KEY)
    assert found[1] is not None
    assert found[0].metrics["balanced_robust_accuracy"] == built_in_figures(found[1])["balanced_robust_accuracy"]
    assert found[0].metrics["balanced_robust_accuracy"][1] != 0.4


def test_values_of_an_earlier_version_must_follow(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"accuracy": [0.75, 0.6, 0.9, 40]}
    edit_record(store, lambda data: data.update(metrics_digest="0" * 20, metrics=data["metrics"] | changed))  # type: ignore[operator]
    assert 'metric "accuracy" is written as 0.75' in complaint(publish(store, tmp_path / "site"), capsys)


@pytest.mark.parametrize("written", [{}, {"noise-wins": "so"}])
def test_a_flag_follows_from_the_cells_whatever_is_written(tmp_path: Path, written: dict[str, str]) -> None:
    flagged = fill(tmp_path / "runs", row(A_MODEL, (10, 20)))
    for key in flagged.keys("cells"):
        record = flagged.record(key)
        assert record is not None
        flagged.write_cell(record.model_copy(update={"flags": written}), None)
    assert publish(flagged, tmp_path / "site") == 0
    flags = {record.spec.condition.label: record.flags for record, _ in read_archive(tmp_path / "site" / BOARD)}
    assert {label: list(found) for label, found in flags.items() if found} == {"fgsm@0.1": ["single-step-wins"]}
    assert "fgsm@0.1 fools 10 of 40" in flags["fgsm@0.1"]["single-step-wins"]


def test_a_board_that_is_refused_keeps_no_other_from_being_published(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = store.boards()[BOARD]
    for name, cells in (("good", note["cells"][:3]), ("bad", note["cells"][3:])):
        path = store.root / "boards" / f"{name}.json"
        path.write_text(json.dumps({**note, "cells": cells}))
    write(store)
    edit_board(store, "../bad/README.md", "62.5", "72.5")
    assert "bad" in complaint(publish(store, tmp_path / "site"), capsys)
    assert {path.name for path in (tmp_path / "site").iterdir()} == {BOARD, "good", "index.html", "README.md"}


def test_failed_and_missing_cells_are_named_unless_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [*row(A_MODEL), *row(B_MODEL)[:2], cell(B_MODEL, PGD, "out of memory")]
    store = fill(tmp_path / "runs", cells, missing=["0" * 20])
    shown = complaint(publish(store, tmp_path / "site"), capsys)
    for part in ("2 of its cells", "b · pgd@0.1 · seed 0", "0" * 20, "--incomplete"):
        assert part in shown
    assert not (tmp_path / "site").exists()
    assert publish(store, tmp_path / "site", "--incomplete") == 0
    assert "2 of its cells failed or were not run" in capsys.readouterr().out


METRIC = '''
from dataclasses import dataclass
from robbench import Measure, Metric, register_metric

@register_metric("halves")
@dataclass(frozen=True)
class Halves(Metric):
    """Is always a half."""

    def measure(self, outcome):
        return {"half": Measure(1 / 2)}
'''


def test_metrics_that_are_not_known_are_named_and_known_ones_checked(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "halves.py"
    plugin.write_text(METRIC)
    assert publish(store, tmp_path / "site", "--plugin", str(plugin)) == 0
    edit_record(store, lambda data: data["metrics"].update(half=[0.25, None, None, 0]))  # type: ignore[attr-defined]
    write(store)
    capsys.readouterr()
    assert publish(store, tmp_path / "site") == 0
    assert "not checked: half" in capsys.readouterr().out
    shown = complaint(publish(store, tmp_path / "site", "--plugin", str(plugin)), capsys)
    assert 'metric "half" is written as 0.25 of 0 samples, but 0.5 of 0 samples follows' in shown


def test_figures_with_names_that_lead_elsewhere_are_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(store)
    for name in ("../../curves", "/etc/curves", ".hidden", ""):
        folder = store.root / "leaderboards" / BOARD
        for suffix in ("png", "svg"):
            path = folder / "figures" / f"{name}.{suffix}"
            if not path.is_absolute() or str(path).startswith(str(tmp_path)):
                path.write_bytes(b"")
        write_manifest(folder, [replace(PICTURE, name=name)])
        complaint(publish(store, tmp_path / "site"), capsys)
        assert not (tmp_path / "site").exists()
