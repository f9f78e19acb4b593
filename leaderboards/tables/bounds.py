"""Attacks beside proved intervals of robust accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.sheet import Sheet, SheetLine, TableCell, numbers, words
from robbench.leaderboards.tables.parts import single
from robbench.results.schema import Bound


def proved(board: Board, bounds: Sequence[Bound]) -> Sheet:
    """A line per bound and attack, and where the attack lies: inside the bounds, weak, or wrong."""
    rows = {row.label: row for row in board.rows}
    lines = [line for bound in bounds if bound.row in rows for line in _lines(board, rows[bound.row], bound)]
    headings = (*words("Model", "Attack"), *numbers("Robust accuracy", "Proved"), *words("Verdict"))
    return Sheet("Proved robust accuracy", headings, tuple(lines))


def sentences(board: Board, bounds: Sequence[Bound]) -> list[str]:
    """What is proved of each model, and what the strongest attack leaves, in one sentence each."""
    found = []
    for bound in bounds:
        row = next((row for row in board.rows if row.label == bound.row), None)
        lines = [line.cells for line in _lines(board, row, bound)] if row else []
        if lines:
            least = min(lines, key=lambda cells: cells[2].sort or 0.0)
            norm, _, size = bound.threat.partition("@")
            found.append(
                f"Proved of {bound.row} at {norm.capitalize()} {size}: {_interval(bound)} % of {bound.images:,} images "
                f"are robust; {least[1].text} leaves {least[2].text} % ({least[4].text})."
            )
    return found


def _lines(board: Board, row: Row, bound: Bound) -> Iterator[SheetLine]:
    norm, _, size = bound.threat.partition("@")
    for label in board.threats.get(f"{norm.capitalize()} {size}", ()):
        rates = row.cells[label].rates
        if rates is not None and rates.share.n == bound.images:
            cells = (
                TableCell(row.label),
                TableCell(label),
                TableCell(_percent(rates.share.value), rates.share.value, rates.share, single(row, label)),
                TableCell(_interval(bound)),
                TableCell(verdict(rates.share, bound)),
            )
            yield SheetLine(cells, row.label)


def verdict(found: Estimate, bound: Bound) -> str:
    """Where an attack's robust accuracy lies: ``inside``, ``weak`` above all that is possible, ``wrong`` below it."""
    left = round(found.value * found.n)
    above, below = left - bound.high * found.n, bound.low * found.n - left
    # Bounds are published in percent of two digits.
    if below > 0.5:
        return f"wrong: {_points(below / found.n)} below what is proved robust"
    if above > 0.5:
        return f"weak: {_points(above / found.n)} above what is proved possible"
    return "exact" if bound.low == bound.high else "inside"


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _interval(bound: Bound) -> str:
    if bound.low == bound.high:
        return f"exactly {_percent(bound.low)}"
    if bound.high == 1:
        return f"at least {_percent(bound.low)}"
    return f"{_percent(bound.low)}–{_percent(bound.high)}" if bound.low else f"at most {_percent(bound.high)}"
