"""The short form of a board, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from robbench.leaderboards.board import board_data
from robbench.leaderboards.markdown import interval, percent
from robbench.results.schema import CellResult


def summary_rows(cells: Sequence[CellResult]) -> list[dict[str, str]]:
    """One line per model, the best first: rank, model, clean, perturbed and worst case in percent, by heading.

    Args:
        cells: Records of one data set with their outcomes, None unless done.

    Raises:
        ValueError: If the cells do not make one table.
    """
    board = board_data("", "", cells)
    lines = []
    for row in board.rows:
        clean, worst = board.clean(row), board.ranking(row)
        line = {"rank": row.rank or "–", "model": row.label}
        line["clean"] = percent(clean.share if clean else None)
        if board.perturbed:
            natural = row.cells[board.perturbed].rates
            line[board.perturbed] = percent(natural.share if natural else None)
        heading = f"worst case {board.ranked_by}" if board.ranked_by else "clean, balanced"
        line[heading] = interval(worst.balanced if worst else None)
        chance = ["not above chance"] if row.above_chance is False else []
        line["remarks"] = "; ".join([*row.flags, *chance, *([row.unranked] if row.unranked else [])])
        lines.append(line)
    return lines
