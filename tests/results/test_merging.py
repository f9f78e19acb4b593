from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import A_MODEL, CLEAN, PGD, Cell, cell, dataset, model, outcome
from grid_files import tiny, write_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import B_MODEL, BOARD, LABELS, attacked, complaint, draw, files, fill, finished, publish, row, whole

from robbench.cli.main import main
from robbench.core.errors import StoreError
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note
from robbench.results.merging import BoardSource, merge
from robbench.results.schema import BoardNote, ModelSpec, Record, Reference, digest
from robbench.results.store import Store


def published(folder: Path, cells: Sequence[Cell], references: Sequence[Reference] = ()) -> Path:
    """A published board of these cells."""
    store = fill(folder / "runs", cells, references)
    assert publish(store, folder / "site") == 0
    return folder / "site" / BOARD


def source(name: str, cells: Sequence[Cell], references: Sequence[Reference] = ()) -> BoardSource:
    note = BoardNote(grid="small", title=name, references=tuple(references))
    return BoardSource(name, note, tuple(finished(made) for made in cells))


def labels(found: BoardSource) -> list[str]:
    return list(dict.fromkeys(record.spec.model.label for record in found.records))


def assert_same_but_figures(merged: Path, whole: Path, plain: Path) -> None:
    """All but timings, figures and the order of the page's records is what follows from the cells of the whole."""
    for path in write_board(plain, read_note(whole), read_archive(whole)):
        if path.name not in ("timings.csv", "index.html"):
            assert (merged / path.name).read_bytes() == path.read_bytes(), path.name


# --- parts make the whole


@pytest.mark.parametrize(
    "divide",
    [
        lambda record: record.spec.model.label == "a",
        lambda record: record.spec.condition.label in ("clean", "fgsm@0.1"),
        lambda record: record.spec.seed == 0,
    ],
    ids=["by model", "by condition", "by seed"],
)
def test_two_parts_make_the_board_of_the_whole(divide: Callable[[Record], bool], tmp_path: Path) -> None:
    cells = [*whole(), *row(A_MODEL, (28, 22), seed=1), *row(B_MODEL, (33, 27), seed=1)]
    one, two = ([made for made in cells if divide(made[0]) is half] for half in (True, False))
    assert one
    assert two
    together = published(tmp_path / "whole", cells)
    store = fill(tmp_path / "one" / "runs", one)
    other = published(tmp_path / "two", two)
    assert publish(store, tmp_path / "merged", "--from", str(other)) == 0
    assert_same_but_figures(tmp_path / "merged" / BOARD, together, tmp_path / "plain")
    keys = {record.key for record, _ in read_archive(tmp_path / "merged" / BOARD)}
    assert keys == {record.key for record, _ in cells}


@pytest.mark.end_to_end
def test_halves_of_a_grid_that_were_really_run_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robbench.execution.local.cores", lambda: 1)
    models: list[dict[str, str]] = [{}, {"defense": "fgm"}]
    for name, part in (("one", models[:1]), ("two", models[1:]), ("whole", models)):
        (tmp_path / name).mkdir()
        write_grid(tmp_path / name / "grid.toml", tiny(models=part))
        words = ["--grid", str(tmp_path / name / "grid.toml"), "--limit", "20", "--workers", "1", "--device", "cpu"]
        assert main(["run", *words, "--out", str(tmp_path / name / "runs")]) == 0
    assert publish(Store(tmp_path / "two" / "runs"), tmp_path / "theirs") == 0
    assert publish(Store(tmp_path / "one" / "runs"), tmp_path / "merged", "--from", str(tmp_path / "theirs")) == 0
    assert publish(Store(tmp_path / "whole" / "runs"), tmp_path / "site") == 0
    (board,), (together,) = ([*(tmp_path / place).glob("grid-*")] for place in ("merged", "site"))
    assert_same_but_figures(board, together, tmp_path / "plain")


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    other = published(tmp_path / "other", row(B_MODEL))
    site = tmp_path / "site"
    assert publish(store, site, "--from", str(other)) == 0
    first = files(site)
    shutil.copytree(site, tmp_path / "copy")
    assert publish(store, site, "--from", str(tmp_path / "copy"), "--from", str(other), "--from", str(other)) == 0
    assert files(site) == first


MODELS = [model("c", "fgm"), model("c", "trades"), model("d", "noise"), model("a", "mixup")]
OWN = source("own", row(A_MODEL))
PARTS = [
    source(f"part {place}", row(spec, (20 + place, 10 + place), seed), [Reference(row=spec.label, value=place / 10)])
    for place, (spec, seed) in enumerate((spec, seed) for spec in MODELS for seed in (0, 1))
]


def keyed(spec: ModelSpec, seed: int) -> str:
    return digest([spec.model_dump(mode="json", exclude={"label"}), seed])


def distinct(part: BoardSource) -> BoardSource:
    """With keys that tell models apart, as those of runs do."""
    cells = []
    for record, result in part.cells:
        key = keyed(record.spec.model, record.spec.seed)
        spec = record.spec.model_copy(update={"model_key": key})
        cells.append((record.model_copy(update={"key": digest([key, spec.condition.label]), "spec": spec}), result))
    return replace(part, cells=tuple(cells))


OWN, PARTS = distinct(OWN), [distinct(part) for part in PARTS]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(PARTS))), st.integers(0, len(PARTS)))
def test_the_order_of_sources_does_not_matter_nor_do_repeats(places: list[int], cut: int) -> None:
    order = [PARTS[place] for place in places]
    expected = merge(OWN, PARTS).source
    merged = merge(OWN, [*order, *order[:cut]]).source
    assert (merged.note, merged.records) == (expected.note, expected.records)
    # What was merged before is a source like any other.
    again = merge(OWN, [*order[:cut], replace(expected, where="merged")]).source
    assert (again.note, again.records) == (expected.note, expected.records)


# --- rows


def test_rows_of_one_name_that_are_not_the_same_stay_apart() -> None:
    other = distinct(source("other", row(model("a", "fgm"))))
    merged = merge(OWN, [other]).source
    first, second = labels(merged)
    assert first == "a"
    assert second.startswith("a (")
    assert [record.spec.model.defenses for record in merged.records if record.spec.model.label == "a"] == [()] * 3
    assert {record.key for record in merged.records if record.spec.model.label == second} == {
        record.key for record in other.records
    }


def test_a_row_that_others_call_something_else_is_the_same_row() -> None:
    renamed = [
        (record.model_copy(update={"spec": record.spec.model_copy(update={"model": model("mine")})}), result)
        for record, result in distinct(source("other", row(A_MODEL, seed=1))).cells
    ]
    merged = merge(OWN, [BoardSource("other", OWN.note, tuple(renamed))]).source
    assert labels(merged) == ["a"]
    assert {record.spec.seed for record in merged.records} == {0, 1}


def test_rows_that_start_from_different_models_are_different_rows() -> None:
    def tuned(defense: str | None) -> list[Cell]:
        return [*row(model("first", defense)), *row(model("tuned", start="first"), seed=0)]

    own, same = distinct(source("own", tuned(None))), distinct(source("same", tuned(None)))
    assert labels(merge(own, [same]).source) == ["first", "tuned"]
    # Seeds of their own, so that no key of a model is the same.
    cells = [
        (
            record.model_copy(
                update={
                    "key": digest([record.key, "other"]),
                    "spec": record.spec.model_copy(update={"model_key": digest(record.key), "seed": 1}),
                }
            ),
            result,
        )
        for record, result in source("x", tuned("fgm")).cells
    ]
    keys = {label: digest(label) for label in ("first", "tuned")}
    cells = [
        (r.model_copy(update={"spec": r.spec.model_copy(update={"model_key": keys[r.spec.model.label]})}), o)
        for r, o in cells
    ]
    merged = merge(own, [BoardSource("other", own.note, tuple(cells))]).source
    found = labels(merged)
    assert found[:2] == ["first", "tuned"]
    assert [label.split(" (")[0] for label in found[2:]] == ["first", "tuned"]
    starts = {record.spec.model.label: record.spec.model.start for record in merged.records}
    assert starts == {"first": None, "tuned": "first", found[2]: None, found[3]: found[2]}


def test_what_the_audit_finds_is_told_of_the_merged_row(tmp_path: Path) -> None:
    weak = row(A_MODEL, (10, 20))
    store = fill(tmp_path / "runs", [weak[0], weak[2]])
    other = published(tmp_path / "other", [weak[0], weak[1]])
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    flags = {record.spec.condition.label: set(record.flags) for record, _ in read_archive(tmp_path / "site" / BOARD)}
    assert flags["fgsm@0.1"] == {"single-step-wins"}
    assert "flag: single-step-wins" in (tmp_path / "site" / BOARD / "README.md").read_text()


def test_title_and_text_are_the_own_ones_and_references_are_united(tmp_path: Path) -> None:
    mine, theirs = Reference(row="a", value=0.5), Reference(row="b", condition="fgsm@0.1", value=0.25)
    other = published(tmp_path / "other", row(B_MODEL), [theirs, mine])
    path = other / "board.json"
    path.write_text(path.read_text().replace("Toys", "Other toys"))
    store = fill(tmp_path / "runs", row(A_MODEL), [mine])
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    note = read_note(tmp_path / "site" / BOARD)
    assert (note.title, note.references) == ("Toys", (mine, theirs))


def test_a_failed_cell_is_replaced_by_one_that_others_finished(tmp_path: Path) -> None:
    cells = whole()
    broken = [*cells[:2], cell(A_MODEL, PGD, "out of memory"), *cells[3:]]
    store = fill(tmp_path / "runs", broken)
    other = published(tmp_path / "other", cells)
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    assert (tmp_path / "site" / BOARD / "README.md").read_bytes() == (other / "README.md").read_bytes()


def test_own_figures_are_shown_only_while_all_cells_are_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    draw(store)
    same, more = published(tmp_path / "same", row(A_MODEL)), published(tmp_path / "more", row(B_MODEL))
    assert publish(store, tmp_path / "site", "--from", str(same)) == 0
    assert (tmp_path / "site" / BOARD / "figures" / "curves.png").is_file()
    capsys.readouterr()
    assert publish(store, tmp_path / "site", "--from", str(more)) == 0
    assert "figures were left out" in capsys.readouterr().out
    assert not (tmp_path / "site" / BOARD / "figures").exists()


def test_boards_of_other_grids_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = fill(tmp_path / "runs", row(A_MODEL)), published(tmp_path / "other", row(B_MODEL))
    path = other / "board.json"
    path.write_text(path.read_text().replace('"small"', '"large"'))
    capsys.readouterr()
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    assert f"{other}: not used" in capsys.readouterr().out
    assert len(read_archive(tmp_path / "site" / BOARD)) == 3


def test_a_model_that_predicts_differently_elsewhere_brings_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    other = published(tmp_path / "other", [*row(A_MODEL, (30, 19)), *row(B_MODEL, (35, 25))])
    capsys.readouterr()
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    shown = capsys.readouterr().out
    left_out = "whose models predict differently, as on another machine, or start from one that does"
    assert f"{other}: trainings were excluded {left_out}: a, seed 0" in shown
    assert f"{other}: 3 cells were added" in shown
    found = {record.key: result.sha256() for record, result in read_archive(tmp_path / "site" / BOARD) if result}
    assert found == {record.key: result.sha256() for record, result in map(finished, whole()) if result}


def test_weights_of_two_machines_are_not_mixed() -> None:
    """One cell that differs is enough: cells that only the other has are of other weights too."""
    extra = PGD.model_copy(update={"label": "pgd@0.2", "stages": (PGD.stages[0].model_copy(update={"eps": 0.2}),)})
    theirs = source("theirs", [*row(A_MODEL, (30, 19)), cell(A_MODEL, extra, attacked(5))])
    own = source("own", row(A_MODEL))
    merged = merge(own, [theirs])
    assert merged.source.records == own.records
    assert (merged.added["theirs"], merged.excluded) == (0, {"theirs": ["a, seed 0"]})


def test_weights_are_told_apart_by_what_they_decide_where_no_cell_is_shared() -> None:
    decided = np.where(np.arange(len(LABELS)) == 7, 1 - LABELS, LABELS)
    started = model("c", start="a")
    theirs = source("theirs", [cell(A_MODEL, PGD, outcome("attack", LABELS, decided)), *row(started), *row(B_MODEL)])
    own = source("own", row(A_MODEL)[:2])
    merged = merge(own, [theirs])
    assert labels(merged.source) == ["a", "b"]
    assert merged.excluded == {"theirs": ["a, seed 0", "c, seed 0"]}
    same = source("theirs", [cell(A_MODEL, PGD, outcome("attack", LABELS)), *row(started)])
    assert (labels(merge(own, [same]).source), merge(own, [same]).excluded) == (["a", "c"], {})


def test_a_cell_that_is_not_supported_here_parts_no_weights() -> None:
    own = source("own", [*row(A_MODEL)[:2], cell(A_MODEL, PGD, "!no such norm")])
    merged = merge(own, [source("theirs", row(A_MODEL))])
    assert (merged.source.records, merged.excluded) == (own.records, {})


# --- what cannot be merged


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"fingerprint": "e" * 64}, "fingerprint"),
        ({"class_names": ("car", "dog")}, "class_names"),
        ({"counts": {"train": (30, 31), "test": (4, 4)}}, "counts"),
    ],
)
def test_other_data_is_refused(change: dict[str, object], part: str) -> None:
    data = dataset().model_copy(update=change)
    other = source("theirs", [cell(B_MODEL, CLEAN, outcome("clean", LABELS), data=data)])
    with pytest.raises(StoreError, match=f"own and theirs are not of the same data set: {part}"):
        merge(OWN, [other])


def test_other_conditions_under_one_name_are_refused() -> None:
    other = source("theirs", [cell(B_MODEL, PGD.model_copy(update={"sample": 10}), attacked(20))])
    with pytest.raises(StoreError, match=f'own and theirs mean two conditions by "{PGD.label}"'):
        merge(OWN, [other])
    renamed = source("theirs", [cell(B_MODEL, PGD.model_copy(update={"label": "mine"}), attacked(20))])
    with pytest.raises(StoreError, match="mine"):
        merge(OWN, [renamed])


def test_one_row_of_two_models_is_refused() -> None:
    with pytest.raises(StoreError, match="is not the same model in both"):
        merge(OWN, [source("theirs", row(A_MODEL))])


def test_the_same_through_other_models_is_left_out() -> None:
    cells = [(record.model_copy(update={"key": digest(record.key)}), result) for record, result in OWN.cells]
    merged = merge(OWN, [BoardSource("theirs", OWN.note, tuple(cells))])
    assert merged.source.records == OWN.records
    assert merged.set_aside == 3


def test_a_gap_that_others_bring_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "runs", row(A_MODEL))
    other = published(tmp_path / "other", [cell(A_MODEL, CLEAN, outcome("clean", LABELS), seed=1)])
    capsys.readouterr()
    shown = complaint(publish(store, tmp_path / "site", "--from", str(other)), capsys)
    for part in ("a · fgsm@0.1 · seed 1", "a · pgd@0.1 · seed 1", "2 of its cells"):
        assert part in shown


def test_reading_and_merging_leave_sources_as_they_are(tmp_path: Path) -> None:
    store, other = fill(tmp_path / "runs", row(A_MODEL)), published(tmp_path / "other", row(B_MODEL))
    before = files(other)
    assert publish(store, tmp_path / "site", "--from", str(other)) == 0
    assert files(other) == before
