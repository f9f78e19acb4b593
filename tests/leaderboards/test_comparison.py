"""Numbers of one table are of the same images, and of the same attacks at every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from board_cells import CHAIN, CLEAN, PGD, ROTATION, Cell, cell, dataset, model, outcome, stage
from hypothesis import given, settings
from hypothesis import strategies as st
from sheets import heads, lines

from robbench.leaderboards import board_data, tables
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.readme import readme
from robbench.leaderboards.sheet import Detail, Sheet, by_samples
from robbench.results.schema import ConditionSpec, Reference

N = 24
TRUTH = np.arange(N) % 2
EPS = (0.05, 0.1, 0.2)
NAMES = ("fgsm", "pgd", "strong")


def attack(name: str, eps: float | None, norm: str = "linf") -> ConditionSpec:
    size = "" if eps is None else f"@{eps}"
    return ConditionSpec(label=f"{name}{size}", kind="attack", stages=(stage(name, norm, eps, steps=20),))


SMALLEST = attack("fmn", None)


@st.composite
def boards(draw: Any) -> list[Cell]:
    """Rows under clean images, a perturbation and any attacks at any sizes, each on any of the images."""
    rows = [model(name) for name in "abc"[: draw(st.integers(1, 3))]]
    ids = st.sets(st.integers(0, N - 1), min_size=8).map(sorted)
    chosen = draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(EPS)), min_size=1, unique=True))
    specs = [CLEAN, ROTATION, *(attack(name, eps) for name, eps in chosen)] + [SMALLEST] * draw(st.booleans())
    seeds = draw(st.sampled_from([(0,), (0, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wrong = {row.label: rng.random(N) < 0.2 for row in rows}
    cells = []
    for spec in specs:
        images = np.array(draw(ids))
        for row in rows:
            # One row may have been run on other images than the rest.
            own = np.array(draw(ids)) if draw(st.integers(0, 9)) == 0 else images
            for seed in seeds:
                clean = np.where(wrong[row.label], 1 - TRUTH, TRUTH)[own]
                fooled = rng.random(len(own)) < rng.random()
                final = np.where(fooled & (clean == TRUTH[own]), 1 - TRUTH[own], clean)
                if spec.kind == "clean":
                    made = outcome("clean", TRUTH[own], clean, ids=own)
                else:
                    limit = spec.stages[0].eps or 0.3
                    made = outcome(spec.kind, TRUTH[own], clean, final, ids=own, linf=limit * rng.random(len(own)))
                cells.append(cell(row, spec, made, seed=seed))
    return cells


def sizes(sheet: Sheet) -> set[int]:
    """Of how many images the shares in a table are."""
    found = [cell for line in sheet.lines for cell in line.cells]
    return {cell.figure.n for cell in found if cell.figure and cell.hint.startswith("95 %")}


@given(boards())
@settings(max_examples=40, deadline=None)
def test_numbers_of_a_table_can_be_compared(cells: list[Cell]) -> None:
    board = board_data("", "", cells)
    parts = tables.contents.sheets(board)
    for sheet in (*parts["ranking"], *parts["others"], *parts["conditions"], *parts["strength"], *parts["sizes"]):
        assert len(sizes(sheet)) == 1
        assert f"n = {min(sizes(sheet))}" in [sheet.caption.rpartition(", ")[2], *(h.below for h in sheet.headings)]
    for row in board.rows:
        worst_is_lowest(board, row)
    for comparison in board.comparisons:
        attacks = [{label.partition("@")[0] for label in board.threats[threat]} for threat in comparison.threats]
        assert all(found == set(comparison.attacks) for found in attacks)
    for curve in board.strength:
        sized = [label.partition("@") for label in curve.conditions if "@" in label]
        by_eps = {eps: frozenset(name for name, _, other in sized if other == eps) for _, _, eps in sized}
        assert len(set(by_eps.values())) == 1
        assert len(by_eps) == len(curve.radii)
    specs = [record.spec.condition for record, _ in cells]
    every = frozenset(spec.label for spec in specs if spec.kind == "attack")
    assert {frozenset(curve.conditions) for curve in board.sizes} <= ({every} if SMALLEST in specs else set())
    for curve in (*board.sizes, *board.strength):
        for line in curve.lines.values():
            shares = [line.clean.share.value, *(point.share.value for point in line.points)]
            assert shares == sorted(shares, reverse=True)
            assert shares[-1] - 1e-12 <= line.area.share.value <= shares[0] + 1e-12


def worst_is_lowest(board: Board, row: Row) -> None:
    """The row's worst case is at most each attack of it, and clean accuracy, in the same table."""
    threat = board.ranked_by or ""
    worst = row.worst[threat]
    for label in (*board.threats[threat], *([board.clean_label] if board.clean_label else [])):
        beside = row.compared(label) if worst else None
        if worst and beside:
            assert worst.share.n == beside.share.n
            assert worst.share.value <= beside.share.value + 1e-12
            assert worst.balanced.value <= beside.balanced.value + 1e-12


def left(right: Sequence[int], ids: Sequence[int] | None = None, **arrays: Any) -> Any:
    chosen = np.arange(N) if ids is None else np.asarray(ids)
    truth = TRUTH[chosen]
    return outcome("attack", truth, truth, np.where(np.isin(chosen, right), truth, 1 - truth), ids=chosen, **arrays)


def usual(**more: Any) -> list[Cell]:
    """A strong attack on half of the images at one size, weaker ones on all at three."""
    weak = {eps: left(range(20 - 4 * at)) for at, eps in enumerate(EPS)}
    rows = [model("a"), model("b", "fgm")]
    made = []
    for row in rows:
        made += [cell(row, CLEAN, outcome("clean", TRUTH), **more)]
        made += [cell(row, attack("pgd", eps), found, **more) for eps, found in weak.items()]
        made += [cell(row, attack("strong", 0.1), left(range(6), range(12)), **more)]
    return made


def test_what_cannot_be_compared_stands_in_a_table_of_its_own_and_that_is_said() -> None:
    board = board_data("Toys", "small", usual())
    parts = tables.contents.sheets(board)
    (ranking,), (others,) = parts["ranking"], parts["others"]
    assert heads(ranking.upto(Detail.README)) == ["Rank", "Model", "Worst case Linf 0.1 (n = 12)", "Clean"]
    assert others.caption == f"Under pgd, n = {N}"
    assert heads(others) == ["Model", "Clean", "Worst case Linf 0.05", "Worst case Linf 0.2"]
    text = readme(board)
    said = f"in tables of their own: worst cases at Linf 0.05 and Linf 0.2 (under pgd, n = {N})."
    assert said in text
    assert f"**Under pgd, n = {N}**" in text
    (curve,) = board.strength
    assert curve.conditions == ("pgd@0.05", "pgd@0.1", "pgd@0.2")
    assert {point.share.n for line in curve.lines.values() for point in line.points} == {N}


def test_all_sizes_of_one_ensemble_on_the_same_images_share_the_table_and_nothing_is_left_out() -> None:
    made = [one for one in usual() if "strong" not in one[0].spec.condition.label]
    board = board_data("Toys", "small", made)
    sheet = tables.ranks.ranking(board).upto(Detail.README)
    assert heads(sheet)[2:] == [
        *(f"Worst case Linf 0.1 (n = {N})", "Clean", "Worst case Linf 0.05", "Worst case Linf 0.2"),
    ]
    assert not list(tables.ranks.others(board))
    assert "tables of their own" not in readme(board)


def test_a_row_on_other_images_is_not_ranked_and_costs_the_others_none() -> None:
    made = [cell(model(name), PGD, left(range(9), range(12))) for name in "ab"]
    board = board_data("", "", [*made, cell(model("c"), PGD, left(range(12, 20), range(12, 20)))])
    assert [(row.label, bool(row.rank)) for row in board.rows] == [("a", True), ("b", True), ("c", False)]
    assert board.rows[2].unranked == "no image that every condition and the other rows have"
    assert [row.worst["Linf 0.1"] is not None for row in board.rows] == [True, True, False]


def test_where_no_row_could_be_ranked_the_rest_is_shown() -> None:
    made = [cell(model("a"), attack("pgd", 0.1), "crashed"), cell(model("a"), attack("pgd", 0.2), left(range(6)))]
    board = board_data("Toys", "small", [*made, cell(model("a"), CLEAN, outcome("clean", TRUTH))])
    assert [comparison.n for comparison in board.comparisons] == [0, N]
    (row,) = board.rows
    assert (row.rank, row.worst["Linf 0.1"]) == ("", None)
    assert (worst := row.worst["Linf 0.2"]) is not None
    assert worst.share.value == 0.25
    assert (clean := board.clean(row)) is not None
    assert clean.share.n == N
    assert f"worst case at Linf 0.2 (n = {N})" in readme(board)


def test_attacks_for_the_smallest_change_show_no_accuracy() -> None:
    made = [cell(model("a"), spec, left([], linf=np.full(N, 0.03))) for spec in (PGD, SMALLEST)]
    board = board_data("", "", [*made, cell(model("a"), CLEAN, outcome("clean", TRUTH))])
    definitions = {line[0]: line[-2:] for line in lines(tables.robustness.specifications(board))}
    assert definitions["fmn"] == ["–", "–"]
    assert definitions[PGD.label] == ["0.0", "0.0"]
    shown = [heading for sheet in tables.contents.sheets(board)["conditions"] for heading in heads(sheet)]
    assert not any(heading.startswith("fmn") for heading in shown)
    assert not any("fmn" in heading for heading in heads(tables.ranks.leaderboard(board)))
    assert "fmn" not in {line[1] for line in lines(tables.classes.class_figures(board))}
    (curve,) = board.sizes
    assert curve.label == "any Linf attack"
    assert curve.lines["a"].median is not None
    assert curve.lines["a"].median.value == 0.03


def test_distances_are_the_smallest_of_all_attacks() -> None:
    made = [
        cell(model("a"), PGD, left(range(12), linf=np.full(N, 0.1))),
        cell(model("a"), SMALLEST, left([], linf=np.full(N, 0.25))),
    ]
    (curve,) = board_data("", "", made).sizes
    line = curve.lines["a"]
    assert (curve.conditions, curve.radii) == (("fmn", "pgd@0.1"), (0.1, 0.18, 0.25))
    assert [point.share.value for point in line.points] == [0.5, 0.5, 0.0]
    assert line.area.share.value == pytest.approx((0.1 + 0.25) / 2 / 0.25)
    assert line.median is not None
    assert line.median.value == pytest.approx(0.175)


def test_confusion_under_a_chain_counts_what_its_robust_accuracy_counts() -> None:
    truth, clean, final = [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]
    board = board_data("", "", [cell(model("a"), CHAIN, outcome("chain", truth, clean, final))])
    found = board.rows[0].cells[CHAIN.label]
    assert found.rates is not None
    assert found.accuracy is not None
    assert (found.rates.share.value, found.accuracy.share.value) == (0.5, 0.75)
    # The second image is misclassified clean: it keeps that prediction, though the chain brings it back.
    assert found.confusion == ((1, 1), (1, 1))
    assert np.trace(found.confusion) / 4 == found.rates.share.value
    (sheet,) = tables.classes.per_class(board)
    assert lines(sheet)[0][4] == "50.0", "macro F1 by the same rule"
    published = Reference(row="a", condition=CHAIN.label, figure="macro_f1", value=0.75)
    assert tables.robustness.compared(board, published) is None, "which published figures do not follow"


def test_confusion_and_macro_f1_are_of_the_images_that_accuracy_is_of() -> None:
    """Of those that all rows have, even where a row was run on more."""
    truth, images = np.arange(40) % 2, np.arange(30)
    final = np.where(np.arange(40) < 30, truth, 1 - truth)
    whole = cell(model("a"), PGD, outcome("attack", truth, truth, final))
    part = cell(model("b"), PGD, outcome("attack", truth[images], truth[images], final[images], ids=images))
    found = board_data("", "", [whole, part]).rows[0].cells[PGD.label]
    assert found.rates is not None
    assert (found.rates.share.value, found.rates.share.n) == (1.0, 30)
    assert found.confusion == ((15, 0), (0, 15))
    f1 = found.detail("macro_f1")
    assert f1 is not None
    assert (f1.value, f1.n) == (1.0, 30)
    assert f1.low is not None


def test_single_changes_on_other_images_stand_in_tables_of_their_own() -> None:
    board = board_data("Toys", "small", usual())
    clean, attacked = tables.contents.sheets(board)["changes"]
    assert (clean.caption, attacked.caption) == (f"Defense, n = {N}", "Defense, n = 12")
    assert heads(clean) == ["From", "To", "Clean, balanced"]
    assert heads(attacked)[:3] == ["From", "To", "Worst case Linf 0.1"]
    assert by_samples(attacked) == [attacked]


# ------------------------------------------------------------------------------------------------------------- rank_by


def test_a_board_ranks_where_its_grid_says_and_by_default_at_the_reference() -> None:
    made = usual()
    assert board_data("", "", made).ranked_by == "Linf 0.1"
    board = board_data("", "", made, "linf@0.2")
    assert (board.ranked_by, board.chosen) == ("Linf 0.2", True)
    assert "The grid ranks at Linf 0.2." in readme(board)
    assert [comparison.threats for comparison in board.comparisons] == [("Linf 0.2", "Linf 0.05"), ("Linf 0.1",)]
    missing = board_data("", "", made, "l2@3")
    assert (missing.ranked_by, missing.chosen) == ("Linf 0.1", False)


# --------------------------------------------------------------------------------------------------------------- floor


def kept(counts: Mapping[float, int], n: int = 200) -> list[tuple[ConditionSpec, Any]]:
    truth = np.arange(n) % 2
    return [
        (attack("pgd", eps), outcome("attack", truth, truth, np.where(np.arange(n) < count, truth, 1 - truth)))
        for eps, count in counts.items()
    ]


def test_a_board_at_the_floor_says_so_and_where_something_is_left() -> None:
    rows = {"a": {0.05: 50, 0.1: 9, 0.2: 2}, "b": {0.05: 30, 0.1: 2, 0.2: 0}, "c": {0.05: 40, 0.1: 1, 0.2: 0}}
    made = [cell(model(name), *one) for name, counts in rows.items() for one in kept(counts)]
    headline = readme(board_data("Toys", "small", made, "linf@0.2")).splitlines()[2]
    assert headline.startswith("Every model is at the floor at Linf 0.2: next to nothing is left to rank. ")
    assert "Something is left at Linf 0.1: up to 4.5 %." in headline
    assert "Best: **a**, 1.0 % worst-case robust accuracy (" in headline
    everything = [cell(model("a"), *one) for one in kept({0.05: 0, 0.1: 0})]
    assert "Nothing is left at a smaller size that was run either." in readme(board_data("", "", everything))
    # Some rows at the floor are a remark; none are none.
    remark = readme(board_data("Toys", "small", made))
    assert "2 of 3 models are at the floor" in remark
    assert "at Linf 0.05 they keep 15.0–20.0 %." in remark
    assert "floor" not in readme(board_data("Toys", "small", made, "linf@0.05"))


def test_few_images_are_no_floor() -> None:
    made = [cell(model("a"), *one) for one in kept({0.1: 1}, n=8)]
    assert "floor" not in readme(board_data("", "", made))


# --------------------------------------------------------------------------------------------------------------- audit


def test_the_board_says_that_rows_are_audited_and_without_flags() -> None:
    assert "Audited, no flags: all 2 models." in readme(board_data("Toys", "small", usual()))
    flagged = usual(flags={"zero-gradient": "somewhere"})[:5] + usual()[5:]
    assert "Audited, no flags: 1 of 2 models; 1 flagged." in readme(board_data("Toys", "small", flagged))


def test_boards_of_one_grid_are_told_apart_by_their_data_sets() -> None:
    other = [cell(model("a"), CLEAN, outcome("clean", TRUTH), data=dataset(label="toys-imbalanced"))]
    texts = [readme(board_data("Toys", "small", made)).splitlines()[0] for made in (usual(), other)]
    assert texts == ["# Toys (toys)", "# Toys (toys-imbalanced)"]


def test_rows_know_what_they_share_with_a_table() -> None:
    board = board_data("Toys", "small", usual())
    row: Row = board.rows[0]
    assert row.compared("clean") == board.clean(row)
    assert row.compared("clean", 1) == row.cells["clean"].rates
    assert row.compared("strong@0.1", 1) is None
