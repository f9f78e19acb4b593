"""Attacks beside proved bounds: inside, weak, or wrong."""

from __future__ import annotations

import pytest
from board_cells import A_MODEL, FGSM, PGD
from stores import row

from robbench.leaderboards import Board, board_data
from robbench.leaderboards.files import csv_files
from robbench.leaderboards.readme import readme
from robbench.leaderboards.tables.bounds import proved, sentences
from robbench.results.schema import BoardNote, Bound


def board(left: int, also: int = 40) -> Board:
    """FGSM leaves ``also`` and PGD ``left`` of forty images."""
    return board_data("toys", "toys", row(A_MODEL, (also, left)))


def bound(low: float, high: float, images: int = 40) -> Bound:
    threat = FGSM.stages[0]
    return Bound(
        row=A_MODEL.label,
        threat=f"{threat.norm}@{threat.eps:g}",
        low=low,
        high=high,
        images=images,
        source="a solver",
    )


@pytest.mark.parametrize(
    ("left", "low", "high", "verdict"),
    [
        (20, 0.5, 0.5, "exact"),
        (21, 0.5, 0.5, "weak: 2.50 points above what is proved possible"),
        (19, 0.5, 0.5, "wrong: 2.50 points below what is proved robust"),
        (20, 0.4, 0.6, "inside"),
        (24, 0.4, 0.6, "inside"),
        (25, 0.4, 0.6, "weak: 2.50 points above what is proved possible"),
        (15, 0.4, 1.0, "wrong: 2.50 points below what is proved robust"),
        (39, 0.4, 1.0, "inside"),
    ],
)
def test_an_attack_lies_inside_above_or_below(left: int, low: float, high: float, verdict: str) -> None:
    made = board(left)
    lines = {line.cells[1].text: line.cells[4].text for line in proved(made, [bound(low, high)]).lines}
    assert lines[PGD.label] == verdict
    (sentence,) = sentences(made, [bound(low, high)])
    assert f"{PGD.label} leaves {100 * left / 40:.2f} % ({verdict})" in sentence


def test_bounds_of_other_images_rows_or_sizes_say_nothing() -> None:
    made = board(20)
    other_row = bound(0.5, 0.5).model_copy(update={"row": "another"})
    other_size = bound(0.5, 0.5).model_copy(update={"threat": "linf@0.987"})
    for one in (bound(0.5, 0.5, images=41), other_row, other_size):
        assert not proved(made, [one]).lines
        assert not sentences(made, [one])


def test_boards_show_them_in_markdown_and_csv() -> None:
    made, note = board(21), BoardNote(grid="toys", title="toys", bounds=(bound(0.5, 0.5),))
    text = readme(made, note)
    assert text.index("exactly 50.00 % of 40 images are robust") < text.index("## Ranking")
    assert "## Proved bounds" in text
    assert "weak: 2.50 points" in csv_files(made, note)["bounds.csv"]
    assert "bounds.csv" not in csv_files(made, BoardNote(grid="toys", title="toys"))
