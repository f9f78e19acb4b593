"""A board's figures compared with published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board
from robbench.leaderboards.entries import Entry
from robbench.results.schema import Reference

RECALL = "recall/"


@dataclass(frozen=True)
class Comparison:
    """A published figure and ours of the same kind, None where there is none."""

    reference: Reference
    ours: Estimate | None


def compared(board: Board, references: Sequence[Reference]) -> list[Comparison]:
    """The references to a board's rows, each with the board's own figure, in their order."""
    rows = {row.label: row for row in board.rows}
    found = []
    for reference in references:
        row = rows.get(reference.row)
        entry = row.cells.get(reference.condition) if row else None
        ours = _figure(entry, reference.figure, board.dataset.class_names) if entry else None
        found.append(Comparison(reference, ours))
    return found


def _figure(entry: Entry, name: str, class_names: Sequence[str]) -> Estimate | None:
    rates = entry.accuracy or entry.rates
    if rates is None:
        return None
    if name == "accuracy":
        return rates.share
    if name.startswith(RECALL):
        label = name.removeprefix(RECALL)
        return rates.per_class[class_names.index(label)] if label in class_names else None
    return entry.detail(name)
