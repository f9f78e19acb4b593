from __future__ import annotations

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, PGD, Cell, cell, model, outcome, part

from robbench.evaluation.statistics import Scores, compare
from robbench.leaderboards import board_data, tables
from robbench.leaderboards.ablations import Part, change, margin
from robbench.leaderboards.aggregates import Estimate, against_constant
from robbench.leaderboards.board import Board
from robbench.leaderboards.findings import comparison_note, findings
from robbench.leaderboards.markdown import probability, reach, signed
from robbench.leaderboards.readme import markdown_table
from robbench.leaderboards.sheet import Detail
from robbench.leaderboards.tables.robustness import compared
from robbench.results.schema import BoardNote, Reference, Training

LABELS = np.array([0] * 30 + [1] * 10)
NOTE = BoardNote(grid="small", title="Toys")


def scores(values: np.ndarray, labels: np.ndarray = LABELS) -> Scores:
    return Scores(np.arange(len(labels)), labels, values.astype(float))


def test_changes_are_of_the_seeds_that_both_rows_have() -> None:
    none, some, all_ = (scores(np.arange(40) < count) for count in (0, 20, 40))
    few = change({0: none, 1: none, 2: all_}, {1: some, 2: all_, 3: none})
    assert few is not None
    assert few.p is None, "two seeds tell nothing of methods"
    assert few.by_seed == pytest.approx((0.5 * 20 / 30, 0.0))
    assert few.added.value == pytest.approx(0.5 * 10 / 30)
    enough = change(dict.fromkeys(range(3), none), dict.fromkeys(range(4), some))
    assert enough is not None
    assert enough.p is not None
    assert change({0: none}, {1: some}) is None
    elsewhere = Scores(np.arange(40) + 100, LABELS, np.ones(40))
    assert change({0: none}, {0: elsewhere}) is None


def test_a_margin_is_that_of_the_figures_shown_where_few_seeds_are_shared() -> None:
    none, all_ = scores(np.zeros(40)), scores(np.ones(40))
    found = margin({0: none, 1: all_}, {0: all_})
    assert found is not None
    assert (found.added.value, found.p) == (0.5, None)
    found = margin(dict.fromkeys(range(3), none), {0: none, 1: all_, 2: all_})
    assert found is not None
    assert found.p is not None
    assert found.by_seed == (0, 1, 1)
    assert margin({}, {0: all_}) is None


def shown(board: Board, part: Part) -> str:
    """The table of a change as a README shows it."""
    return markdown_table(tables.making.changes(board, part).upto(Detail.README))


def rows(*seeds: int, **shares: float) -> list[Cell]:
    """Rows that keep a share of each class's images under attack, by what of them differs from the plain one."""
    made = {
        "plain": model("plain"),
        "smote": model("smote").model_copy(update={"balancer": part("smote")}),
        "fgm": model("fgm").model_copy(update={"defenses": (part("fgm"),)}),
        "angular": model("angular").model_copy(update={"objective": part("angular")}),
        "long": model("long").model_copy(update={"recipe": {"epochs": 99}}),
    }
    cells = []
    for name, share in shares.items():
        final = LABELS.copy()
        for label, count in ((0, 30), (1, 10)):
            at = np.flatnonzero(label == LABELS)
            final[at[round(share * count) :]] = 1 - label
        for seed in seeds or (0,):
            cells += [cell(made[name], CLEAN, outcome("clean", LABELS), seed=seed)]
            attacked = outcome("attack", LABELS, LABELS, final)
            cells += [cell(made[name], condition, attacked, seed=seed) for condition in (FGSM, PGD)]
    return cells


def test_pairs_are_rows_that_differ_in_one_part_alone() -> None:
    board = board_data("Toys", "small", rows(0, 1, 2, plain=0.2, smote=0.2, fgm=0.9, angular=0.5, long=0.7))
    found = {(pair.part, pair.first, pair.second): pair for pair in board.pairs}
    assert set(found) == {
        ("objective", "plain", "angular"),
        ("defenses", "plain", "fgm"),
        ("balancer", "plain", "smote"),
    }
    better, same = found["defenses", "plain", "fgm"], found["balancer", "plain", "smote"]
    assert better.robust is not None
    assert better.robust.added.value == pytest.approx(0.7)
    assert better.clean is not None
    assert (better.clean.added.value, better.clean.p) == (0, 1)
    assert better.robust.by_seed == pytest.approx((0.7,) * 3)
    assert same.robust is not None
    assert same.robust.p == 1.0
    plain = scores(np.r_[np.arange(30) < 6, np.arange(10) < 2])
    best = scores(np.r_[np.arange(30) < 27, np.arange(10) < 9])
    alone = compare([plain] * 3, [best] * 3)
    assert alone is not None
    assert better.robust.p == pytest.approx(min(1.0, 3 * alone.p)), "Holm over three pairs"
    assert better.robust.added == alone.added
    text = shown(board, "defenses")
    assert "| plain | fgm |" in text
    assert "+70.0" in text


def test_means_over_pairs_on_other_images_stand_in_tables_of_their_own() -> None:
    """Clean accuracy is of all images, the worst case of those that were attacked."""
    made = rows(plain=0.2, fgm=0.9, smote=0.5)
    half = np.arange(0, 40, 2)
    some = [
        cell(record.spec.model, PGD, outcome("attack", LABELS[half], LABELS[half], found.final[half], ids=half))
        for record, found in made
        if record.spec.condition.label == PGD.label and found is not None
    ]
    left = [one for one in made if one[0].spec.condition.label != PGD.label]
    sheets = tables.contents.sheets(board_data("Toys", "small", [*left, *some]), detail=Detail.README)["effects"]
    assert [sheet.caption for sheet in sheets] == ["Single changes, n = 40", "Single changes, n = 20"]
    headings = [[heading.text for heading in sheet.headings] for sheet in sheets]
    assert headings == [["Change", "Clean, balanced"], ["Change", "Worst case Linf 0.1", "Worst case higher in"]]
    (whole,) = tables.contents.sheets(board_data("Toys", "small", made), detail=Detail.README)["effects"]
    assert (whole.caption, len(whole.headings)) == ("Single changes", 4)
    assert "fgm vs. no defense (1 pair)" in markdown_table(whole)


def test_findings_say_what_the_objective_does_and_how_sure_that_is() -> None:
    text = " ".join(findings(board_data("Toys", "small", rows(0, 1, 2, plain=0.2, angular=0.9))))
    assert "Single changes, in points: angular vs. ce +70.0 (" in text
    assert ", p < 0.001) at Linf 0.1." in text
    text = " ".join(findings(board_data("Toys", "small", rows(0, 1, 2, plain=0.2, angular=0.2))))
    assert ", p 1) at Linf 0.1." in text


def test_few_seeds_tell_of_checkpoints_alone() -> None:
    board = board_data("Toys", "small", rows(0, 1, plain=0.2, angular=0.9))
    headline, *others = findings(board)
    assert ", itself undefended" in headline
    text = " ".join(others)
    assert "Single changes, of these checkpoints, in points: angular vs. ce +70.0 (" in text
    assert "p <" not in text
    assert ", p " not in shown(board, "objective")
    assert comparison_note(board).startswith("95 % intervals over test images, paired, for these checkpoints")
    both = board_data("Toys", "small", [*rows(0, 1, 2, plain=0.2, angular=0.9), *rows(0, fgm=0.8)])
    assert "Without p: 95 % intervals over test images" in comparison_note(both)
    text = " ".join(findings(both))
    assert "; angular vs. ce +70.0 (" in text
    assert "fgm vs. no defense +60.0 (" in text
    assert " at Linf 0.1, these checkpoints; " in text
    every = board_data("Toys", "small", rows(0, 1, 2, plain=0.2, angular=0.9))
    assert comparison_note(every).startswith("95 % intervals over training seeds and test images")
    assert "Without p" not in comparison_note(every)


def test_other_sizes_tell_more_where_nothing_is_left_of_what_ranks() -> None:
    small = [
        found.model_copy(
            update={"label": f"{name}@0.05", "stages": (found.stages[0].model_copy(update={"eps": 0.05}),)}
        )
        for name, found in (("fgsm", FGSM), ("pgd", PGD))
    ]
    cells = []
    for seed, share in ((0, 0.5), (1, 0.8)):
        for name, robust in (("plain", 0.2), ("angular", share)):
            made = rows(**{name: 0.0})
            final = np.where(np.r_[np.arange(30) < 30 * robust, np.arange(10) < 10 * robust], LABELS, 1 - LABELS)
            spec = made[0][0].spec.model
            cells += [
                cell(spec, record.spec.condition, result, seed=seed) for record, result in made if result is not None
            ]
            cells += [cell(spec, found, outcome("attack", LABELS, LABELS, final), seed=seed) for found in small]
    board = board_data("Toys", "small", cells)
    (pair,) = board.pairs
    assert pair.robust is not None
    assert (pair.robust.added.value, pair.robust.p) == (0, None)
    assert list(pair.elsewhere) == ["Linf 0.05"]
    moved = pair.elsewhere["Linf 0.05"]
    assert moved is not None
    assert moved.by_seed == pytest.approx((0.3, 0.6))
    assert moved.added.value == pytest.approx(0.45)
    kept = [np.r_[np.arange(30) < 30 * share, np.arange(10) < 10 * share] for share in (0.2, 0.5, 0.8)]
    together = compare([scores(kept[0])] * 2, [scores(kept[1]), scores(kept[2])])
    assert together is not None
    assert moved.added == together.added
    text = shown(board, "objective")
    assert "| From | To | Clean, balanced | Worst case Linf 0.05 | Worst case Linf 0.1 |" in text
    assert "| +45.0 (" in text
    assert "by seed +30.0, +60.0" in [cell.hint for cell in tables.making.changes(board, "objective").lines[0].cells]
    text = " ".join(findings(board))
    assert "angular vs. ce +45.0 (" in text
    assert ") at Linf 0.05, none shown at Linf 0.1." in text
    weaker = [made for made in cells if made[0].spec.condition.label != "fgsm@0.05"]
    (pair,) = board_data("Toys", "small", weaker).pairs
    assert not pair.elsewhere, "without one of the attacks that rank there is no worst case to compare"


def test_the_row_to_choose_is_the_best_on_validation_data() -> None:
    def trained(record_cells: list[Cell], accuracy: float, passes: float) -> list[Cell]:
        made = Training(
            images=100,
            epochs=2,
            steps=10,
            forwards=passes,
            backwards=passes,
            validation_images=50,
            validation_accuracy=accuracy,
            validation_balanced_accuracy=accuracy,
        )
        return [(record.model_copy(update={"training": made}), result) for record, result in record_cells]

    cells = [*trained(rows(plain=0.9), 0.5, 100), *trained(rows(smote=0.1), 0.8, 250)]
    board = board_data("Toys", "small", cells)
    text = " ".join(findings(board))
    assert "Selected on validation: smote (80.0 %). Test: clean 100.0, worst case 10.0; baseline (plain)" in text
    assert "; baseline (plain) 100.0 and 90.0." in text
    assert "| smote | 100 | 2 | 10 | 500 | 80.0 (67.0–88.8) | 80.0 |" in markdown_table(tables.making.training(board))


@pytest.mark.parametrize(("share", "said"), [(0.45, "Not distinguishable from"), (0.1, "Below"), (0.95, "")])
def test_a_leader_that_is_no_better_than_a_constant_answer_is_told(share: float, said: str) -> None:
    (headline, *_) = findings(board_data("Toys", "small", rows(plain=share)))
    assert headline.endswith(f". {said} a constant prediction (50.0 %)." if said else " itself undefended.")


@pytest.mark.parametrize(
    ("low", "high", "stands"),
    [(0.0, 0.15, "below"), (0.0, 0.25, "like"), (0.25, 0.4, "like"), (0.26, 0.4, "above"), (None, None, "above")],
)
def test_chance_is_compared_with_the_interval(low: float | None, high: float | None, stands: str) -> None:
    assert against_constant(Estimate(0.3, low, high, 30), 4) == stands


def test_references_stand_beside_our_own_figures() -> None:
    board = board_data("Toys", "small", rows(plain=0.5))
    references = (
        Reference(row="plain", condition="clean", figure="accuracy", value=0.9, remark="one seed"),
        Reference(row="plain", condition="fgsm@0.1", figure="recall/cat", value=0.25),
        Reference(row="plain", condition="clean", figure="macro_f1", value=0.8),
        Reference(row="nobody", value=0.1),
    )
    ours = [found.value if (found := compared(board, one)) else None for one in references]
    assert ours == [1.0, 0.5, 1.0, None]
    text = markdown_table(tables.robustness.references(board, references))
    assert "| Model | Condition | Accuracy | Recall of cat | Macro F1 | Remark |" in text
    assert "| plain | clean | 90.0 → 100.0 (91.2–100.0) | – | 80.0 → 100.0 (88.6–100.0) | one seed |" in text
    assert "| nobody | clean | 10.0 → – |" in text


def test_differences_and_p_values_are_never_rounded_to_what_they_are_not() -> None:
    assert (signed(-0.0001), reach(-0.02, 0.02)) == ("+0.0", "-2.0 to +2.0")
    assert probability(0.0001) == "< 0.001"
    assert probability(0.041) == "0.041"


def test_the_report_is_scikit_learns() -> None:
    from sklearn.metrics import classification_report

    rng = np.random.default_rng(3)
    decided = np.where(rng.random(40) < 0.7, LABELS, 1 - LABELS)
    board = board_data("Toys", "small", [cell(model("plain"), CLEAN, outcome("clean", LABELS, decided))])
    report = classification_report(LABELS, decided, output_dict=True)
    made = tables.classes.report(board, board.rows[0])
    assert made is not None
    text = markdown_table(made)
    for name, label in (
        ("car", "0"),
        ("cat", "1"),
        ("macro average", "macro avg"),
        ("weighted average", "weighted avg"),
    ):
        found = report[label]
        figures = " | ".join(f"{100 * found[figure]:.1f}" for figure in ("precision", "recall", "f1-score"))
        assert f"| {name} | {figures} | {found['support']:.0f} |" in text
