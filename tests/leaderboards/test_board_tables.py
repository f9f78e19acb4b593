from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from board_cells import CLEAN, FGSM, NEXT, PGD, PGD_2, TOYS, Cell, cell, model, outcome, stage
from sheets import first, heads, lines

from robbench.evaluation.metrics.decisions import Decisions
from robbench.leaderboards import board_data, tables, write_board
from robbench.leaderboards.readme import readme
from robbench.leaderboards.sheet import Detail
from robbench.leaderboards.table import is_audited
from robbench.leaderboards.tables.parts import share
from robbench.results.schema import Measure

LABELS = np.array([0, 0, 0, 1])
A = model("a")


@pytest.mark.parametrize(
    ("steps", "losses", "audited"),
    [
        (20, ("margin",), True),
        (50, ("ce", "dlr"), True),
        (19, ("margin",), False),
        (0, ("margin",), False),
        (20, ("ce",), False),
        (20, (), False),
    ],
)
def test_twenty_gradient_steps_on_margins_count_as_an_audit(steps: int, losses: tuple[str, ...], audited: bool) -> None:
    made = stage("odd").model_copy(update={"gradient_steps": steps, "losses": losses})
    assert is_audited([FGSM.model_copy(update={"stages": (made,)})]) is audited


def test_the_ranking_shows_each_attack_of_the_threat_model_that_ranks() -> None:
    cells = [
        cell(A, condition, outcome("attack", LABELS, LABELS, np.where(np.array(right) == 1, LABELS, 1 - LABELS)))
        for condition, right in ((FGSM, [1, 1, 0, 1]), (PGD, [0, 1, 0, 1]), (PGD_2, [0, 0, 0, 0]))
    ]
    table = tables.ranks.ranking(board_data("", "", [*cells, cell(A, CLEAN, outcome("clean", LABELS))]))
    line = first(table)
    # Of the classes' 2 of 3 and 1 of 1, and of their 1 of 3 and 1 of 1.
    assert (line["fgsm@0.1"], line["pgd@0.1"]) == ("83.3", "66.7")
    assert "pgd@0.2" not in line
    # At the other size only one of the two attacks was run.
    headings = ["Model", "Worst case Linf 0.1 (n = 4)", "Clean"]
    assert heads(table.upto(Detail.README)) == headings, "single attacks are on the page"


def test_right_samples_of_the_target_class_are_left_out_of_robust_rates() -> None:
    final, tried = np.array([1, 0, 0, 1]), np.array([True, True, True, False])
    targeted = outcome("attack", LABELS, LABELS, final, attempted=tried, targets=np.where(tried, 1, -1))
    spec = NEXT.model_copy(update={"label": "pgd@0.1->cat", "target": "cat"})
    board = board_data("", "", [cell(A, spec, targeted), cell(A, CLEAN, outcome("clean", LABELS))])
    rates = board.rows[0].cells[spec.label].rates
    assert rates is not None
    assert (rates.share.value, rates.share.n) == (2 / 3, 3)
    assert rates.per_class[1] is None
    assert heads(tables.robustness.conditions(board, [spec.label], share, "")) == ["Model", "pgd@0.1->cat (n = 3)"]
    nothing = outcome("attack", [1], [1], [1], attempted=np.array([False]))
    assert board_data("", "", [cell(A, spec, nothing)]).rows[0].cells[spec.label].rates is None


def with_metrics(made: Cell, **figures: Measure) -> Cell:
    record, result = made
    assert result is not None
    return record.model_copy(update={"metrics": {**Decisions().measure(result), **figures}}), result


def test_further_metrics_stand_on_the_board(tmp_path: Path) -> None:
    made = outcome("attack", LABELS, LABELS, 1 - LABELS)
    cells = [
        with_metrics(cell(A, PGD, made), margin=Measure(0.25, 0.125, 0.5, 4)),
        with_metrics(cell(model("b"), PGD, made), margin=Measure(1.0, n=4), energy=Measure(-2.0, n=3)),
        with_metrics(cell(model("b"), PGD, made, seed=1), margin=Measure(3.0, n=2)),
    ]
    board = board_data("", "", cells)
    table = tables.robustness.further(board)
    assert heads(table) == ["Model", "Condition", "margin"]
    assert sorted(lines(table)) == [
        ["a", "pgd@0.1", "0.25 (0.125–0.5)"],
        ["b", "pgd@0.1", "2"],
    ]
    assert "## Further metrics" in readme(board)
    write_board(tmp_path, TOYS, cells)
    rows = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))["rows"]
    found = next(row for row in rows if row["model"]["label"] == "b")["cells"]["pgd@0.1"]["further"]
    assert found == {"margin": [2.0, None, None, 2, [1.0, 3.0]]}


def test_built_in_figures_are_no_further_metrics() -> None:
    board = board_data("", "", [with_metrics(cell(A, PGD, outcome("attack", LABELS, LABELS, 1 - LABELS)))])
    assert tables.robustness.further(board).lines == ()
    assert "Further metrics" not in readme(board)


def test_copies_of_validation_images_are_told_of() -> None:
    text = readme(board_data("", "", [cell(A, CLEAN, outcome("clean", LABELS))]))
    assert "1 test images are copies of training or validation images" in text
