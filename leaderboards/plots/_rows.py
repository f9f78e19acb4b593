"""Which rows go into figures that cannot hold all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import counted, listed

CROWD = 6
"""Rows in one plot at most."""


def leading(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first row and the first undefended one; one row if they are the same, none of none.

    Rows with an audit flag are left out, unless there is no other.
    """
    sound = [row for row in rows if not row.flags] or rows
    first = [*sound[:1], *[row for row in sound if row.undefended][:1]]
    return tuple({row.label: row for row in first}.values())


def featured(rows: Sequence[Row], limit: int = CROWD) -> tuple[Row, ...]:
    """Few enough rows for one plot, in the order given.

    The first and the first undefended one; then the first of each further kind of defense, objective, balancing and
    architecture, one after the other; then from the top.
    """
    chosen = {row.label: row for row in leading(rows)}
    kinds: tuple[Callable[[Row], Any], ...] = (
        lambda row: tuple(part.label for part in row.model.defenses),
        lambda row: row.model.objective.label,
        lambda row: row.model.balancer.label,
        lambda row: row.model.architecture.label,
        lambda row: row.label,
    )
    for kind in kinds:
        for row in rows:
            if len(chosen) < limit and kind(row) not in {kind(other) for other in chosen.values()}:
                chosen[row.label] = row
    return tuple(row for row in rows if row.label in chosen)


def which(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    """A sentence on which of some rows are shown, a space before it; empty where all are."""
    if len(rows) == len(shown):
        return ""
    lead = leading(rows)
    there = [row for row in lead if row.label in {row.label for row in shown}]
    first = "the first" if lead[0].flags else "the best"
    parts = [first if row is lead[0] else f"{first} undefended one" for row in there]
    rest = len(shown) - len(there)
    parts += [f"the best of {counted(rest, 'other kind')} of training"] * (rest > 0)
    return f" Of {counted(len(rows), 'row')}, {listed(parts)} {'is' if len(shown) == 1 else 'are'} shown."
