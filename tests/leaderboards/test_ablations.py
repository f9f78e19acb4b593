from __future__ import annotations

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, PGD, Cell, cell, model, outcome, part
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.evaluation.statistics import Scores, balanced, class_rates, mean_difference, paired_difference, paired_p
from robbench.leaderboards import board_data, tables
from robbench.leaderboards.ablations import Part
from robbench.leaderboards.board import Board
from robbench.leaderboards.findings import findings
from robbench.leaderboards.markdown import probability, reach, signed
from robbench.leaderboards.readme import markdown_table
from robbench.leaderboards.sheet import Detail
from robbench.leaderboards.tables.robustness import compared
from robbench.results.schema import BoardNote, Measure, Reference, Training

LABELS = np.array([0] * 30 + [1] * 10)
NOTE = BoardNote(grid="small", title="Toys")


def scores(values: np.ndarray, labels: np.ndarray = LABELS) -> Scores:
    return Scores(np.arange(len(labels)), labels, values.astype(float))


def ends(measure: Measure) -> tuple[float, float]:
    assert measure.low is not None
    assert measure.high is not None
    return measure.low, measure.high


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**20))
def test_the_difference_is_that_of_balanced_means_and_turns_with_the_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (scores(rng.random(40) < share) for share in (0.4, 0.7))
    found, back = paired_difference(first, second), paired_difference(second, first)
    assert found is not None
    assert back is not None
    means = [balanced(class_rates(row.values, row.labels, 2)).value for row in (first, second)]
    assert found.value == pytest.approx(means[1] - means[0]) == pytest.approx(mean_difference(first, second) or 0)
    (low, high), turned = ends(found), ends(back)
    assert low <= found.value <= high
    assert back.value == pytest.approx(-found.value)
    assert back.n == 40
    assert turned == pytest.approx((-high, -low), abs=0.03)


def test_the_interval_covers_what_it_says() -> None:
    covered, truth = 0, 0.1  # the second row is right with probability 0.6 instead of 0.5, in both classes
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.arange(200) % 2
        draws = rng.random(200)
        found = paired_difference(scores(draws < 0.5, labels), scores(draws < 0.6, labels))
        assert found is not None
        low, high = ends(found)
        covered += low <= truth <= high
    assert covered >= 180, "95 % of 200 are 190; fewer than 180 would be 3 standard deviations and more below"


def test_the_interval_covers_what_it_says_of_classes_of_few_samples() -> None:
    covered, truth, sizes = 0, 0.05, (180, 12, 8)  # right with probability 0.05 instead of 0
    labels = np.repeat([0, 1, 2], sizes)
    for seed in range(200):
        draws = np.random.default_rng(seed).random(200)
        found = paired_difference(scores(np.zeros(200), labels), scores(draws < truth, labels))
        assert found is not None
        low, high = ends(found)
        covered += low <= truth <= high
    assert covered >= 180
    none = paired_difference(scores(np.zeros(200), labels), scores(np.zeros(200), labels))
    assert none is not None
    low, high = ends(none)
    assert low < 0 == none.value < high, "that nothing differs among these is not that nothing does"


def test_rows_without_a_common_sample_are_not_compared() -> None:
    first = scores(np.ones(40))
    second = Scores(np.arange(40) + 100, LABELS, np.ones(40))
    assert paired_difference(first, second) is None
    assert mean_difference(first, second) is None


def shown(board: Board, part: Part) -> str:
    """The table of a change as a README shows it."""
    return markdown_table(tables.making.changes(board, part).upto(Detail.README))


def rows(**shares: float) -> list[Cell]:
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
        cells += [cell(made[name], CLEAN, outcome("clean", LABELS))]
        cells += [cell(made[name], condition, outcome("attack", LABELS, LABELS, final)) for condition in (FGSM, PGD)]
    return cells


def test_pairs_are_rows_that_differ_in_one_part_alone() -> None:
    board = board_data("Toys", "small", rows(plain=0.2, smote=0.2, fgm=0.9, angular=0.5, long=0.7))
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
    assert better.robust.by_seed == pytest.approx((0.7,))
    assert same.robust is not None
    assert same.robust.p == 1.0
    plain = scores(np.r_[np.arange(30) < 6, np.arange(10) < 2])
    best = scores(np.r_[np.arange(30) < 27, np.arange(10) < 9])
    assert better.robust.p == pytest.approx(min(1.0, 3 * (paired_p(plain, best) or 0))), "Holm over three pairs"
    text = shown(board, "defenses")
    assert "| plain | fgm |" in text
    assert "+70.0" in text


def test_findings_say_what_the_objective_does_and_how_sure_that_is() -> None:
    text = " ".join(findings(board_data("Toys", "small", rows(plain=0.2, angular=0.9))))
    assert "Single changes, in points: angular vs. ce +70.0 (" in text
    assert ", p < 0.001) at Linf 0.1." in text
    text = " ".join(findings(board_data("Toys", "small", rows(plain=0.2, angular=0.2))))
    assert ", p 1) at Linf 0.1." in text


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
    assert (pair.robust.added.value, pair.robust.p) == (0, 1)
    assert list(pair.elsewhere) == ["Linf 0.05"]
    change = pair.elsewhere["Linf 0.05"]
    assert change is not None
    assert change.by_seed == pytest.approx((0.3, 0.6))
    assert change.added.value == pytest.approx(0.45)
    kept = [np.r_[np.arange(30) < 30 * share, np.arange(10) < 10 * share] for share in (0.2, 0.5, 0.8)]
    assert change.added == paired_difference(scores(kept[0]), scores((kept[1] + 1.0 * kept[2]) / 2))
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


@pytest.mark.parametrize(("share", "said"), [(0.45, True), (0.95, False)])
def test_a_leader_that_a_constant_answer_would_match_is_told(share: float, said: bool) -> None:
    text = " ".join(findings(board_data("Toys", "small", rows(plain=share))))
    assert ("Not distinguishable from a constant prediction (50.0 %)" in text) is said


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
    assert "| plain | clean | 90.0 → 100.0 (91.2–100.0) | – | 80.0 → 100.0 | one seed |" in text
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
