"""Attacks and certificates beside proved intervals of robust accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.sheet import Sheet, SheetLine, TableCell, numbers, words
from robbench.leaderboards.tables.parts import single
from robbench.results.schema import Bound


def proved(board: Board, bounds: Sequence[Bound]) -> Sheet:
    """A line per bound and attack or certificate, and where it lies: inside the bounds, weak, or wrong."""
    rows = {row.label: row for row in board.rows}
    lines = [
        _line(rows[bound.row], label, found, bound, told)
        for bound in bounds
        for shares, told in ((attacked(board, bound), verdict), (certified(board, bound), claimed))
        for label, found in shares.items()
    ]
    headings = (*words("Model", "Condition"), *numbers("Robust accuracy", "Proved"), *words("Verdict"))
    return Sheet("Proved robust accuracy", headings, tuple(lines))


def sentences(board: Board, bounds: Sequence[Bound]) -> list[str]:
    """What is proved of each model, and what the strongest attack leaves, in one sentence each."""
    found = []
    for bound in bounds:
        left = attacked(board, bound)
        if left:
            least = min(left, key=lambda label: left[label].value)
            found.append(
                f"Proved of {bound.row} at {size(bound)}: {interval(bound)} % of {bound.images:,} images are robust; "
                f"{least} leaves {percent(left[least].value)} % ({verdict(left[least], bound)})."
            )
    return found


def attacked(board: Board, bound: Bound) -> dict[str, Estimate]:
    """The robust accuracy that each attack of the bound's size leaves on its images, by the attack's label."""
    row = next((row for row in board.rows if row.label == bound.row), None)
    labels = board.threats.get(size(bound), ()) if row else ()
    found = {label: rates.share for label in labels if row and (rates := row.cells[label].rates)}
    return {label: share for label, share in found.items() if share.n == bound.images}


def certified(board: Board, bound: Bound) -> dict[str, Estimate]:
    """The share of the bound's images that each certificate of its size proves robust, by the condition's label."""
    cases = [case for case in board.certified.cases if case.threat == size(bound)]
    found = {case.condition: line.certified.share for case in cases if (line := case.lines.get(bound.row))}
    return {label: share for label, share in found.items() if share.n == bound.images}


def _line(row: Row, label: str, found: Estimate, bound: Bound, told: Callable[[Estimate, Bound], str]) -> SheetLine:
    cells = (
        TableCell(row.label),
        TableCell(label),
        TableCell(percent(found.value), found.value, found, single(row, label)),
        TableCell(interval(bound)),
        TableCell(told(found, bound)),
    )
    return SheetLine(cells, row.label)


def verdict(found: Estimate, bound: Bound) -> str:
    """Where an attack's robust accuracy lies: ``inside``, ``weak`` above all that is possible, ``wrong`` below it."""
    outside = beyond(found, bound)
    if outside < 0:
        return f"wrong: {percent(-outside)} points below what is proved robust"
    if outside > 0:
        return f"weak: {percent(outside)} points above what is proved possible"
    return "exact" if bound.low == bound.high else "inside"


def claimed(found: Estimate, bound: Bound) -> str:
    """Where the share that a certificate proves lies: ``certified``, or ``wrong`` above what is possible."""
    above = beyond(found, bound)
    return f"wrong: {percent(above)} points above what is possible" if above > 0 else "certified"


def beyond(found: Estimate, bound: Bound) -> float:
    """How far an attack's robust accuracy lies above what is proved possible; below what is proved robust, negative."""
    left = round(found.value * found.n)
    above, below = left - bound.high * found.n, bound.low * found.n - left
    # Bounds are published in percent of two digits.
    if below > 0.5:
        return -below / found.n
    return above / found.n if above > 0.5 else 0.0


def size(bound: Bound) -> str:
    """The bound's threat model, as boards name it: ``Linf 8/255``."""
    norm, _, eps = bound.threat.partition("@")
    return f"{norm.capitalize()} {eps}"


def percent(share: float) -> str:
    """A share in percent of two digits, as bounds are published."""
    return f"{100 * share:.2f}"


def interval(bound: Bound) -> str:
    """What is proved: ``exactly 95.62``, ``at least 48.00``, ``at most 85.64`` or ``69.19–85.64`` percent."""
    if bound.low == bound.high:
        return f"exactly {percent(bound.low)}"
    if bound.high == 1:
        return f"at least {percent(bound.low)}"
    return f"{percent(bound.low)}–{percent(bound.high)}" if bound.low else f"at most {percent(bound.high)}"
