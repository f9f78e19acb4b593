"""What the tables share: which figure of a set of rates they show, and how."""

from __future__ import annotations

from collections.abc import Callable

from robbench.leaderboards.aggregates import Figure, Rates
from robbench.leaderboards.board import Entry
from robbench.leaderboards.markdown import NONE, percent

Choose = Callable[[Rates], Figure]


def share(rates: Rates) -> Figure:
    """The share of all samples."""
    return rates.share


def balanced(rates: Rates) -> Figure:
    """The mean over classes."""
    return rates.balanced


def of(rates: Rates | None, choose: Choose) -> Figure | None:
    """One figure of some rates, None where there are none."""
    return choose(rates) if rates else None


def shown(entry: Entry, choose: Choose) -> str:
    """One figure of an entry in percent, or what became of it."""
    if entry.rates is None:
        return "failed" if entry.status == "failed" else NONE
    return percent(choose(entry.rates))


def extent(values: set[int]) -> str:
    """``100``, or ``90–100`` where there are several values."""
    return str(min(values)) if len(values) == 1 else f"{min(values)}–{max(values)}"
