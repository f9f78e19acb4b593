"""A board that ranks by clean accuracy: worst cases stand beside it and decide nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from board_cells import CLEAN, PGD, PGD_2, Cell, cell, model, outcome, part
from sheets import heads, lines

from robbench.leaderboards import board_data, tables
from robbench.leaderboards.board import Board
from robbench.leaderboards.files import plain_data
from robbench.leaderboards.findings import findings
from robbench.leaderboards.html.index import IndexEntry
from robbench.leaderboards.summary import summary_rows
from robbench.results.schema import ModelSpec

N, SAMPLE = 400, 100
TRUTH = np.array([0, 1] * (N // 2))


def right(count: int, n: int = N) -> np.ndarray:
    """Predictions of which the first are right."""
    return np.where(np.arange(n) < count, TRUTH[:n], 1 - TRUTH[:n])


def balanced_with(label: str, balancer: str, defense: str = "none") -> ModelSpec:
    return model(label, defense).model_copy(update={"balancer": part(balancer)})


def row(spec: ModelSpec, clean: int, robust: int, seeds: int = 1, sample: int = SAMPLE) -> list[Cell]:
    """Clean on all images, two sizes of an attack on some."""
    attacked: dict[str, Any] = {"clean": right(min(clean, sample), sample), "final": right(robust, sample)}
    made = []
    for seed in range(seeds):
        made.append(cell(spec, CLEAN, outcome("clean", TRUTH, right(clean - 4 * seed)), seed=seed))
        for attack in (PGD, PGD_2):
            made.append(cell(spec, attack, outcome("attack", TRUTH[:sample], **attacked), seed=seed))
    return made


BARE = balanced_with("bare", "none")
WEIGHTED = balanced_with("weighted", "class-weights")
TRADES = balanced_with("trades", "none", "trades")
CELLS = [*row(TRADES, 240, 80), *row(BARE, 300, 5), *row(WEIGHTED, 360, 10)]


def by_clean(cells: list[Cell] | None = None) -> Board:
    return board_data("Toys", "small", cells or CELLS, "clean")


def test_rows_rank_by_clean_accuracy_on_all_its_images() -> None:
    board = by_clean()
    assert [(found.rank, found.label) for found in board.rows] == [("1", "weighted"), ("2", "bare"), ("3", "trades")]
    assert [found.label for found in board_data("Toys", "small", CELLS).rows] == ["trades", "weighted", "bare"]
    assert (board.ranked_by, board.threat, board.chosen) == (None, "Linf 0.1", True)
    assert [board.ranking(found).share.n for found in board.rows] == [N] * 3  # type: ignore[union-attr]


def test_the_worst_case_is_a_column_with_its_images_and_has_a_table_on_the_same() -> None:
    board = by_clean()
    ranking = tables.ranks.ranking(board)
    worst = [f"Worst case Linf 0.1 (n = {SAMPLE})", "Worst case Linf 0.2"]
    assert heads(ranking)[:5] == ["Rank", "Model", f"Clean (n = {N})", *worst]
    assert [float(line[3].split()[0]) for line in lines(ranking)] == [10.0, 5.0, 80.0]
    (same,) = tables.ranks.others(board)
    assert same.caption == f"Under pgd, n = {SAMPLE}"
    assert heads(same) == ["Model", "Clean", "Worst case Linf 0.1", "Worst case Linf 0.2"]


def test_the_headline_is_about_clean_accuracy_and_compares_with_no_countermeasure() -> None:
    (headline, *_) = findings(by_clean())
    assert headline.startswith("Best: **weighted**, 90.0 % balanced clean accuracy (")
    assert " and 10.0 % (" in headline
    assert " in the worst case at Linf 0.1, 15.0 points (" in headline
    assert headline.endswith(") above the best row without a countermeasure (bare, 75.0 %).")
    (plain, *_) = findings(by_clean([*row(BARE, 300, 5), *row(WEIGHTED, 200, 10)]))
    assert plain.endswith(" in the worst case at Linf 0.1.")


def test_ties_are_of_clean_accuracy() -> None:
    tied = by_clean([*row(BARE, 300, 5), *row(WEIGHTED, 301, 90)])
    assert [found.rank for found in tied.rows] == ["1=", "1="]
    assert "; tied with bare." in findings(tied)[0]


def test_ten_seeds_give_two_level_intervals() -> None:
    board = by_clean([*row(BARE, 300, 5, seeds=10), *row(WEIGHTED, 360, 10, seeds=10)])
    assert board.margin is not None
    assert board.margin.p is not None
    assert "these checkpoints" not in findings(board)[0]
    (pair,) = [pair for pair in board.pairs if pair.part == "balancer"]
    assert pair.clean is not None
    assert len(pair.clean.by_seed) == 10
    assert pair.clean.p is not None


def test_a_row_without_its_attack_is_ranked_and_not_audited() -> None:
    board = by_clean([*CELLS, cell(balanced_with("new", "smote"), CLEAN, outcome("clean", TRUTH, right(380)))])
    best = board.rows[0]
    assert (best.label, best.rank, best.audited, board.robust(best)) == ("new", "1", False, None)
    assert findings(board)[0].startswith("Best: **new**, 95.0 % balanced clean accuracy (")
    assert " and an unknown share in the worst case at Linf 0.1" in findings(board)[0]


def test_one_set_of_images_makes_one_table() -> None:
    board = by_clean([*row(BARE, 300, 5, sample=N), *row(WEIGHTED, 360, 10, sample=N)])
    assert [comparison.n for comparison in board.comparisons] == [N]
    assert list(tables.ranks.others(board)) == []


def test_a_grid_without_attacks_says_so_as_ever() -> None:
    cells = [found for found in CELLS if found[0].spec.condition.kind == "clean"]
    assert by_clean(cells).rows == board_data("Toys", "small", cells).rows
    assert findings(by_clean(cells)) == findings(board_data("Toys", "small", cells))


def test_without_clean_images_the_worst_case_ranks() -> None:
    cells = [found for found in CELLS if found[0].spec.condition.kind != "clean"]
    assert by_clean(cells).ranked_by == "Linf 0.1"


def test_the_index_and_the_terminal_follow() -> None:
    board = by_clean()
    found = IndexEntry.of("toys", plain_data(board))
    assert (found.leader, found.measure) == ("weighted", "clean, balanced")
    assert found.figure is not None
    assert found.figure.value == pytest.approx(0.9)
    first = summary_rows(CELLS, "clean")[0]
    assert (first["rank"], first["model"], first["clean"]) == ("1", "weighted", "90.0")
    assert first["worst case Linf 0.1"].startswith("10.0 ")


def test_an_audit_flag_still_ranks_last() -> None:
    flagged = [(one.model_copy(update={"flags": {"collapsed": ""}}), two) for one, two in row(WEIGHTED, 360, 10)]
    assert [found.label for found in by_clean([*row(BARE, 300, 5), *flagged]).rows] == ["bare", "weighted"]
