"""The short form of a board, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.markdown import interval, percent
from robbench.results.schema import CellResult


def summary_rows(cells: Sequence[CellResult], rank_by: str = "") -> list[dict[str, str]]:
    """One line per model, the best first: rank, model, clean, perturbed and worst case in percent, by heading.

    All averaged over classes, on the images of the ranking.

    Args:
        cells: Records of one data set with their outcomes, None unless done.
        rank_by: The threat model to rank by, as ``linf@8/255``, or ``clean``.

    Raises:
        ValueError: If the cells do not make one table.
    """
    board = board_data("", "", cells, rank_by)
    lines = []
    for row in board.rows:
        clean, worst = board.clean(row), board.robust(row) if board.threat else board.clean(row)
        line = {"rank": row.rank or "–", "model": row.label}
        line["clean"] = percent(clean.balanced if clean else None)
        if board.perturbed:
            natural = row.compared(board.perturbed)
            line[board.perturbed] = percent(natural.balanced if natural else None)
        heading = f"worst case {board.threat}" if board.threat else "clean, balanced"
        line[heading] = interval(worst.balanced if worst else None)
        chance = ["not above chance"] if row.above_chance is False else []
        line["remarks"] = "; ".join([*row.flags, *chance, *([row.unranked] if row.unranked else [])])
        lines.append(line)
    return lines
