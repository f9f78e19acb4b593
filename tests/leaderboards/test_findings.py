from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from board_cells import CLEAN, PGD, Cell, cell, dataset, model, outcome, part
from sheets import lines

from robbench.leaderboards import board_data, tables
from robbench.leaderboards.board import Board
from robbench.leaderboards.findings import check_findings, findings
from robbench.leaderboards.markdown import escape
from robbench.results.schema import ConditionSpec, Outcome

TRUTH = np.array([0, 1] * 40)
CHECK = ConditionSpec(**(PGD.model_dump() | {"label": "check@0.1", "check": True}))


def kept(count: int, passes: float = 3.0) -> Outcome:
    """An attack that leaves the first images right."""
    final = np.where(np.arange(80) < count, TRUTH, 1 - TRUTH)
    return outcome("attack", TRUTH, TRUTH, final, forwards=np.full(80, passes), backwards=np.zeros(80))


def board(*cells: Sequence[Cell]) -> Board:
    return board_data("Toys", "small", [one for row in cells for one in row])


def row(label: str, defense: str, left: int, check: Outcome | None = None) -> list[Cell]:
    spec = model(label, defense)
    made = [cell(spec, CLEAN, outcome("clean", TRUTH)), cell(spec, PGD, kept(left))]
    return made + ([cell(spec, CHECK, check)] if check else [])


def test_the_headline_is_the_best_row_with_its_margin_and_ties() -> None:
    made = board(row("bare", "none", 8), row("hardened", "fgm", 60), row("other", "trades", 60))
    (headline, *_) = findings(made)
    assert headline.startswith("Best: **hardened**, 75.0 % worst-case robust accuracy (")
    assert ") at Linf 0.1, 65.0 points (" in headline
    assert headline.endswith(") above the best undefended model (bare, 10.0 %); tied with other.")
    assert made.margin is not None
    value, low, high, _ = made.margin.added
    assert low is not None
    assert high is not None
    assert low < value < high
    assert value == pytest.approx(0.65)
    assert ", these checkpoints) above the best" in headline


def test_a_single_model_is_compared_with_none() -> None:
    (headline, *_) = findings(board(row("mine", "fgm", 60)))
    assert headline.startswith("**mine**, 75.0 % worst-case robust accuracy (")


def test_an_undefended_best_row_has_no_margin() -> None:
    made = board(row("bare", "none", 60), row("hardened", "fgm", 8))
    assert made.margin is None
    assert findings(made)[0].endswith(" at Linf 0.1, itself undefended.")


def test_a_flagged_row_is_not_the_best() -> None:
    flagged = [(one.model_copy(update={"flags": {"zero-gradient": ""}}), two) for one, two in row("odd", "fgm", 80)]
    found = findings(board(row("bare", "none", 8), flagged))
    assert found[0].startswith("Best: **bare**")
    assert "1 row with an audit flag ranks below all others." in found


def flagged(cells: Sequence[Cell], *names: str) -> list[Cell]:
    return [(record.model_copy(update={"flags": dict.fromkeys(names, "")}), found) for record, found in cells]


def test_no_row_is_called_best_where_each_has_a_flag() -> None:
    odd = flagged(row("odd", "fgm", 80), "collapsed"), flagged(row("bare", "none", 8), "non-finite", "collapsed")
    made = board(*odd)
    assert [found.rank for found in made.rows] == ["1", "2"]
    assert findings(made) == ["No row is called best: each of 2 rows has an audit flag (collapsed and non-finite)."]
    assert (made.margin, made.pairs, made.undefended) == (None, (), None)
    assert findings(board(odd[0])) == ["No row is called best: the only row has an audit flag (collapsed)."]


def test_a_flagged_row_takes_no_part_in_what_one_change_does() -> None:
    sound, odd = row("hardened", "fgm", 60), flagged(row("odd", "trades", 80), "collapsed")
    made = board(row("bare", "none", 8), sound, odd)
    assert [(pair.first, pair.second) for pair in made.pairs] == [("bare", "hardened")]
    assert "odd" not in " ".join(findings(made))
    # The base of all comparisons may be the row that is flagged.
    assert board(flagged(row("bare", "none", 8), "collapsed"), sound).pairs == ()


def test_rows_not_above_chance_are_marked() -> None:
    guessing = np.where(np.arange(80) % 3 == 0, TRUTH, 1 - TRUTH)
    cells = [cell(model("weak", "none"), CLEAN, outcome("clean", TRUTH, guessing))]
    made = board(row("bare", "none", 8), [*cells, cell(model("weak", "none"), PGD, kept(0))])
    assert {found.label: found.above_chance for found in made.rows} == {"bare": True, "weak": False}
    assert [line[1] for line in lines(tables.ranks.ranking(made))] == ["bare", "weak (not above chance)"]


@pytest.mark.parametrize(("count", "said"), [(8, "broke none of the 68 images"), (4, "broke 4 of the 68 images")])
def test_what_a_check_of_every_row_found_stands_first(count: int, said: str) -> None:
    rows = row("bare", "none", 8, kept(count, 30.0)), row("hardened", "fgm", 60, kept(60, 30.0))
    headline = findings(board(*rows))[0]
    assert headline.startswith(f"check@0.1 {said} that pgd@0.1 left robust (160 images on 2 models), at 10 times the")
    assert " passes. Best: **hardened**" in headline


def test_what_a_check_of_some_rows_found_stands_with_the_checks() -> None:
    made = board(row("bare", "none", 8), row("hardened", "fgm", 60, kept(60)))
    assert findings(made)[0].startswith("Best: **hardened**")
    (found,) = check_findings(made)
    assert found == (
        "check@0.1 broke none of the 60 images that pgd@0.1 left robust (80 images on 1 model), at "
        "1.0 times the passes."
    )


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
    assert "fgm vs. no defense +50.0 (" in text
    assert ") and +100.0 (" in text
    assert "sampler vs. no balancing +50.0 (" in text
    assert " in clean balanced accuracy." in text


def test_there_are_at_most_three_findings_after_the_headline() -> None:
    rows = [row(f"{defense} {left}", defense, left) for left, defense in ((8, "none"), (40, "fgm"), (60, "trades"))]
    assert len(findings(board(*rows))) <= 4


def test_names_at_the_beginning_of_a_finding_begin_no_list() -> None:
    from markdown_it import MarkdownIt

    for name in ("1. angular", "2) x", "- x", "+ x", "* x", "# x", "10. y"):
        assert (
            MarkdownIt("commonmark").render(f"- {escape(name)} is first") == f"<ul>\n<li>{name} is first</li>\n</ul>\n"
        )
