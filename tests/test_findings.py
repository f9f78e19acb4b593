from __future__ import annotations

import numpy as np
from board_cells import CLEAN, PGD, Cell, cell, dataset, model, outcome, part

from robbench.leaderboards import board_data
from robbench.leaderboards.findings import findings
from robbench.leaderboards.markdown import escape


def test_findings_compare_pairs_that_differ_in_one_thing() -> None:
    truth = np.array([0, 0, 1, 1])
    data = dataset(train=(30, 3))
    rows = [
        ("bare", "none", "none", [1, 1, 0, 0], [0, 0, 0, 0]),
        ("hardened", "fgm", "none", [1, 1, 0, 0], [1, 1, 0, 0]),
        ("sampled", "none", "sampler", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("both", "fgm", "sampler", [1, 1, 1, 1], [1, 1, 1, 1]),
    ]
    cells: list[Cell] = []
    for label, defense, balancer, right, robust in rows:
        spec = model(label, defense).model_copy(update={"balancer": part(balancer)})
        decided = np.where(np.array(right) == 1, truth, 1 - truth)
        final = np.where(np.array(robust) == 1, truth, 1 - truth)
        cells.append(cell(spec, CLEAN, outcome("clean", truth, decided), data=data))
        cells.append(cell(spec, PGD, outcome("attack", truth, decided, final), data=data))
    text = " ".join(findings(board_data("Toys", "small", cells)))
    moved = "moves the worst case by +75.0 points on average over 2 otherwise equal pairs (+50.0 to +100.0)"
    assert f"with fgm instead of none {moved}; it is higher in 2 of 2" in text
    assert "cat with 3 of 33 training images, is recognised unchanged in 0.0 % on average where nothing is" in text
    assert "(2 rows) and in 100.0 % where that alone is different (2 rows)" in text
    assert "Beside bare, where nothing is done about imbalance, balanced accuracy on unchanged images (50.0 %)" in text
    assert "moves by points: sampled +50.0 (" in text
    assert "Without a defense no row keeps more than 0.0 % in that worst case (bare)" in text
    assert "With every seed" not in text, "there is one"


def test_findings_count_every_seed_that_both_rows_have_and_no_other() -> None:
    truth = np.array([0, 1] * 10)
    cells: list[Cell] = []
    for label, balancer, wrong_by_seed in (
        ("bare", "none", (8, 4)),
        ("few", "smote", (6, 5)),
        ("all", "sampler", (0, 0)),
    ):
        spec = model(label).model_copy(update={"balancer": part(balancer)})
        for seed, wrong in enumerate(wrong_by_seed):
            decided = np.where(np.arange(20) < wrong, 1 - truth, truth)
            cells.append(cell(spec, CLEAN, outcome("clean", truth, decided), seed=seed))
            if label == "bare" or seed == 0:
                cells.append(cell(spec, PGD, outcome("attack", truth, decided, decided), seed=seed))
    board = board_data("Toys", "small", cells)
    text = " ".join(findings(board))
    assert "balanced accuracy on unchanged images (70.0 %) moves by points: all +30.0 (" not in text, "not ranked"
    complete = [made for made in cells if made[0].spec.condition.kind == "clean"]
    text = " ".join(findings(board_data("Toys", "small", complete)))
    assert "(70.0 %) moves by points: all +30.0 (" in text
    assert "few +2.5 (" in text
    assert "With every seed it is higher with all." in text


def test_names_at_the_beginning_of_a_finding_begin_no_list() -> None:
    from markdown_it import MarkdownIt

    for name in ("1. angular", "2) x", "- x", "+ x", "* x", "# x", "10. y"):
        assert (
            MarkdownIt("commonmark").render(f"- {escape(name)} is first") == f"<ul>\n<li>{name} is first</li>\n</ul>\n"
        )
