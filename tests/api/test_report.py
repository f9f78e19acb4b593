from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cells import A_MODEL, CLEAN, FGSM, L2, PGD, PGD_2, TOYS, Cell, cell, dataset, model, outcome
from stores import B_MODEL, BOARD, LABELS, attacked, fill, publish, row, whole

import robbench
from robbench import Report, RequestError
from robbench.api.board_results import MissingResult
from robbench.core.errors import StoreError
from robbench.evaluation.statistics import balanced, class_rates


def one_row() -> list[Cell]:
    """A row that keeps 30 of 40 samples at 0.1, and 10 at 0.2."""
    largest = replace(attacked(10), linf=np.full(40, 0.2))
    results = ((CLEAN, outcome("clean", LABELS)), (FGSM, attacked(36)), (PGD, attacked(30)), (PGD_2, largest))
    return [cell(A_MODEL, condition, made) for condition, made in results]


def report(folder: Path, cells: list[Cell]) -> Report:
    fill(folder, cells)
    return robbench.load(folder)


# --- figures


def test_figures_are_shares_averaged_over_classes(tmp_path: Path) -> None:
    found = report(tmp_path, one_row())
    assert found.accuracy().value == 1.0
    assert found.robust_accuracy("fgsm@0.1").value == pytest.approx(36 / 40)
    expected = balanced(class_rates(np.arange(40) < 30, LABELS, 2))
    assert found.robust_accuracy("pgd@0.1") == pytest.approx(expected)
    assert found.worst_case() == found.robust_accuracy("pgd@0.1")


def test_a_worst_case_is_taken_per_sample(tmp_path: Path) -> None:
    """Two attacks that fool other samples leave fewer than either."""
    first, last = attacked(30), attacked(40)
    final = np.where(np.arange(40) >= 10, LABELS, 1 - LABELS)
    last = outcome("attack", LABELS, LABELS, final)
    found = report(tmp_path, [*one_row()[:1], cell(A_MODEL, FGSM, first), cell(A_MODEL, PGD, last)])
    assert found.worst_case().value == pytest.approx(20 / 40)
    assert found.robust_accuracy("pgd@0.1").value == pytest.approx(30 / 40)


def test_classes_count_alike_unless_images_are_asked_for(tmp_path: Path) -> None:
    labels = np.array([0] * 30 + [1] * 10)
    final = np.where(labels == 1, 0, labels)
    cells = [
        cell(A_MODEL, CLEAN, outcome("clean", labels)),
        cell(A_MODEL, PGD, outcome("attack", labels, labels, final)),
    ]
    found = report(tmp_path, cells)
    assert found.worst_case().value == pytest.approx(0.5)
    assert found.worst_case(average="images").value == pytest.approx(0.75)
    assert found.per_class()["accuracy"].tolist() == [1.0, 0.0]
    assert found.per_class("clean")["n"].tolist() == [30, 10]
    with pytest.raises(RequestError, match='did you mean "classes"'):
        found.accuracy(average="class")  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [0.2, "0.2", "51/255", 51 / 255])
def test_a_worst_case_is_found_by_its_size(tmp_path: Path, eps: float | str) -> None:
    found = report(tmp_path, one_row())
    assert found.worst_case("linf", eps).value == pytest.approx(10 / 40)
    assert found.worst_case(eps=eps) == found.worst_case("linf", eps)


def test_a_norm_alone_means_the_size_nearest_to_the_reference(tmp_path: Path) -> None:
    found = report(tmp_path, [*one_row(), cell(A_MODEL, L2, attacked(20))])
    assert found.threats == ("Linf 0.1", "L2 0.5", "Linf 0.2")
    assert found.worst_case("linf").value == pytest.approx(30 / 40)
    assert found.worst_case("l2").value == pytest.approx(20 / 40)


def test_the_curve_begins_with_clean_accuracy_and_never_rises(tmp_path: Path) -> None:
    found = report(tmp_path, one_row()).curve("linf")
    assert found["eps"].tolist() == [0.0, 0.1, 0.2]
    assert found["accuracy"].tolist() == pytest.approx([1.0, 30 / 40, 10 / 40])
    assert set(found["row"]) == {"a"}


def test_costs_are_what_records_say(tmp_path: Path) -> None:
    found = report(tmp_path, one_row()).costs()
    assert found.columns.tolist() == ["row", "condition", "seed", "forwards", "backwards", "seconds"]
    assert found["forwards"].sum() == 4 * 40 * 3
    assert found["backwards"].sum() == 4 * 40 * 2


def test_a_frame_has_a_line_per_figure_and_worst_case(tmp_path: Path) -> None:
    found = report(tmp_path, [*row(A_MODEL), *row(A_MODEL, (10, 12), seed=1)])
    frame = found.to_frame()
    assert not frame.duplicated(["row", "condition", "seed", "figure"]).any()
    worst = frame[(frame.condition == "worst case Linf 0.1") & (frame.figure == "balanced_robust_accuracy")]
    assert worst.set_index("seed")["value"].to_dict() == pytest.approx({0: 20 / 40, 1: 10 / 40})
    single = frame[(frame.condition == "pgd@0.1") & (frame.figure == "robust_accuracy") & (frame.seed == 0)]
    assert single["value"].item() == pytest.approx(20 / 40)
    assert set(frame.dataset) == {"toys"}
    assert len(found.samples()) == 6 * 40


# --- names


def test_a_row_may_be_left_out_where_there_is_one(tmp_path: Path) -> None:
    found = report(tmp_path, whole())
    assert found.rows == ("b", "a")
    assert found.accuracy("a").n == 40
    with pytest.raises(RequestError, match='row: the board has 2 rows, name one: "b", "a"'):
        found.accuracy()


@pytest.mark.parametrize(
    ("ask", "hint"),
    [
        (lambda found: found.robust_accuracy("pgd@0.11"), 'condition: .*"pgd@0.11"; did you mean "pgd@0.1"'),
        (lambda found: found.accuracy("zz"), 'row: there is no row "zz"; known: a'),
        (lambda found: found.worst_case("linv"), 'norm: there is no norm "linv"; did you mean "linf"'),
        (lambda found: found.worst_case("l2"), "norm: no attack was run within l2; there are linf 0.1, linf 0.2"),
        (lambda found: found.worst_case("linf", 8), "eps: no attack was run within linf 8; there are linf 0.1"),
        (lambda found: found.worst_case(8 / 255), 'norm: there is no norm "0.03'),
        (lambda found: found.accuracy(0), 'row: there is no row "0"; known: a'),
        (lambda found: found.worst_case("linf", "much"), 'eps: "much" is no size of change'),
        (lambda found: found.curve("l2"), "norm: no attack was run at two sizes in l2; there are curves in linf"),
        (lambda found: found.outcome("clean", seed=4), 'seed: "a" has no seed 4 under clean; there are 0'),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path, ask: object, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        ask(report(tmp_path, one_row()))  # type: ignore[operator]


def test_a_failed_cell_has_no_figure(tmp_path: Path) -> None:
    found = report(tmp_path, [*one_row()[:2], cell(A_MODEL, PGD, "it broke")])
    for ask in (
        lambda: found.robust_accuracy("pgd@0.1"),
        lambda: found.worst_case(),
        lambda: found.outcome("pgd@0.1"),
        lambda: found.per_class(),
    ):
        with pytest.raises(MissingResult, match="it broke"):
            ask()
    assert "failed: a · pgd@0.1: it broke" in found.summary()


# --- samples


def test_outcomes_are_those_of_the_store(tmp_path: Path) -> None:
    found = report(tmp_path, [*row(A_MODEL), *row(A_MODEL, (10, 12), seed=1)])
    assert found.outcome("pgd@0.1", seed=1).robust.sum() == 12
    with pytest.raises(RequestError, match='"a" has the seeds 0, 1; name one'):
        found.outcome("pgd@0.1")


# --- text


def lines_of(found: Report) -> list[str]:
    return found.summary().splitlines()


def test_the_first_line_says_clean_and_worst_case_and_what_the_audit_says(tmp_path: Path) -> None:
    found = report(tmp_path / "sound", one_row())
    first = " ".join(found.summary().split("\n\n")[0].split())
    assert first.startswith("Clean 100.0 % (91.2–100.0), worst case Linf 0.1 75.0 %")
    assert first.endswith("n = 40; the audit has no objection")
    assert "the audit has no objection" in repr(found)
    assert "<table>" in found._repr_html_()
    assert found._repr_markdown_() == found.to_markdown()


def test_flags_are_said_first(tmp_path: Path) -> None:
    flat = outcome("clean", LABELS, flat=np.ones(40, bool), flat_margin=np.ones(40, bool), flat_ce=np.ones(40, bool))
    found = report(tmp_path, [cell(A_MODEL, CLEAN, flat), *one_row()[1:]])
    assert list(found.flags()) == ["zero-gradient"]
    assert "the audit objects: zero-gradient" in " ".join(found.summary().split("\n\n")[0].split())
    assert "**" in found.to_markdown().splitlines()[0]
    assert "zero-gradient" in found.to_markdown().splitlines()[0]


@pytest.mark.parametrize(
    ("traits", "told"),
    [
        (("outputs-probabilities",), "the audit has no objection; caution: outputs-probabilities"),
        (("randomized", "averaged"), "the audit has no objection; caution: randomized"),
        (
            ("outputs-probabilities", "randomized", "averaged"),
            "the audit has no objection; cautions: randomized and outputs-probabilities",
        ),
    ],
)
def test_cautions_are_said_beside_it(tmp_path: Path, traits: tuple[str, ...], told: str) -> None:
    (first, clean), *others = one_row()
    found = report(tmp_path, [(first.model_copy(update={"traits": traits}), clean), *others])
    assert " ".join(found.summary().split("\n\n")[0].split()).endswith(told)
    assert told in found.to_markdown().splitlines()[0]


def test_worst_cases_stand_from_small_to_large_as_conditions_do(tmp_path: Path) -> None:
    small = PGD.model_copy(update={"label": "pgd@0.05", "stages": (PGD.stages[0].model_copy(update={"eps": 0.05}),)})
    tiny = replace(attacked(38), linf=np.full(40, 0.05))
    clean, *others = one_row()
    found = report(tmp_path, [clean, cell(A_MODEL, L2, attacked(20)), cell(A_MODEL, small, tiny), *others[1:]])
    worst = [line.split("  ")[1] for line in lines_of(found) if line.startswith("  worst case")]
    assert worst == [f"worst case {size}" for size in ("Linf 0.05", "Linf 0.1", "Linf 0.2", "L2 0.5")]


@pytest.mark.parametrize("classes", [2, 43, 300])
def test_the_summary_fits_a_terminal(classes: int) -> None:
    labels = np.arange(2 * classes) % classes
    names = [f"a class with a name that is rather long {number}" for number in range(classes)]
    data = dataset(names)
    rows = [model("a model whose name is longer than any line of a terminal is, " * 2 + str(at)) for at in range(2)]
    hit = np.where(np.arange(len(labels)) % 3 == 0, (labels + 1) % classes, labels)
    cells = []
    for one in rows:
        cells.append(cell(one, CLEAN, outcome("clean", labels, k=classes), data=data))
        cells += [cell(one, at, outcome("attack", labels, labels, hit, k=classes), data=data) for at in (PGD, PGD_2)]
    found = Report("wide", TOYS, tuple(cells))
    assert max(map(len, lines_of(found))) <= 80
    assert len(lines_of(found)) < 60
    single = Report("narrow", TOYS, tuple(cells[:3]))
    assert max(map(len, lines_of(single))) <= 80
    assert (f"and {classes - 12} more" in single.summary()) is (classes > 12)


def test_texts_of_others_are_safe(tmp_path: Path) -> None:
    evil = model("\u202e<script>|a|\x1b[31m [x](http://y.z)")
    cells = [cell(evil, condition, made) for condition, made in ((CLEAN, outcome("clean", LABELS)), (PGD, attacked(9)))]
    found = report(tmp_path, [*cells, *row(B_MODEL)])
    for text in (found.summary(), found.to_markdown(), found._repr_html_(), repr(found)):
        assert "\u202e" not in text
        assert "\x1b" not in text
    assert "<script>" not in found._repr_html_()
    assert "href" not in found._repr_html_()


# --- files


def test_a_report_is_saved_as_a_published_board_and_read_again(tmp_path: Path) -> None:
    found = report(tmp_path / "runs", whole())
    place = found.save(tmp_path / "mine")
    assert {"README.md", "index.html", "leaderboard.csv", "records.jsonl", "outcomes.npz"} <= {
        path.name for path in place.iterdir()
    }
    again = robbench.load(place)
    assert again.rows == found.rows
    assert again.summary() == found.summary()
    assert again.to_frame().equals(found.to_frame())
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        found.save(tmp_path / "mine")


def test_reports_are_found_where_results_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "runs", whole())
    assert publish(store, tmp_path / "published") == 0
    for place in (
        tmp_path / "runs",
        tmp_path / "runs" / "leaderboards",
        tmp_path / "runs" / "leaderboards" / BOARD,
        tmp_path / "published" / BOARD,
        tmp_path / "published",
    ):
        found = robbench.load(place)
        assert (found.name, found.rows) == (BOARD, ("b", "a"))
        assert robbench.load(str(place), board=BOARD).worst_case(row="a") == found.worst_case(row="a")


def test_a_directory_without_results_is_refused_in_one_line(tmp_path: Path) -> None:
    store = fill(tmp_path / "runs", whole())
    store.note_board("other", robbench.load(store.root).note, [], [])
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "board.json").write_bytes((store.root / "leaderboards" / BOARD / "board.json").read_bytes())
    (tmp_path / "empty").mkdir()
    for place, board, hint in (
        (tmp_path / "none", None, "is no directory"),
        (tmp_path / "empty", None, "holds no results"),
        (copied, None, "a board without its cells"),
        (store.root, None, 'holds 2 boards, name one, as in ".*leaderboards/other": "other", "toys"'),
        (store.root, "toy", 'no board "toy"; did you mean "toys"'),
        (store.root, "other", "none of the cells"),
        (store.root / "leaderboards" / BOARD, "other", "is one board"),
    ):
        with pytest.raises(RequestError, match=hint):
            robbench.load(place, board=board)


def test_the_audit_of_a_published_board_is_not_taken_on_trust(tmp_path: Path) -> None:
    flat = outcome("clean", LABELS, flat=np.ones(40, bool), flat_margin=np.ones(40, bool), flat_ce=np.ones(40, bool))
    place = report(tmp_path / "runs", [cell(A_MODEL, CLEAN, flat), *one_row()[1:]]).save(tmp_path / "mine")
    records = place / "records.jsonl"
    text = records.read_text()
    assert '"zero-gradient"' in text
    records.write_text(text.replace('"zero-gradient"', '"nothing"'))
    assert list(robbench.load(place).flags()) == ["zero-gradient"]


def test_it_is_drawn(tmp_path: Path) -> None:
    for name, cells in (("rows", whole()), ("curve", one_row()), ("bars", row(A_MODEL))):
        found = report(tmp_path / name, cells)
        made = found.plot(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert made.axes
    with pytest.raises(RequestError, match="ending of no picture"):
        found.plot(tmp_path / "a.txt")
    with pytest.raises(StoreError, match="cannot write"):
        found.plot(tmp_path / "nowhere" / "a.png")


def test_costs_of_training_stand_apart(tmp_path: Path) -> None:
    found = report(tmp_path, one_row()).costs()
    assert "training" not in set(found["condition"])
    assert all(math.isnan(value) for value in found["seconds"])
