"""A board's figures beside those that others found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robbench.leaderboards.aggregates import Figure
from robbench.leaderboards.board import Board, Entry
from robbench.leaderboards.markdown import NONE, TextTable, escape, interval
from robbench.results.schema import Reference

RECALL = "recall/"


@dataclass(frozen=True)
class Beside:
    """A figure from elsewhere and ours of the same kind, None where there is none."""

    reference: Reference
    ours: Figure | None


def beside(board: Board, references: Sequence[Reference]) -> list[Beside]:
    """The references to a board's rows, each with the board's own figure, in their order."""
    rows = {row.label: row for row in board.rows}
    found = []
    for reference in references:
        row = rows.get(reference.row)
        entry = row.cells.get(reference.condition) if row else None
        found.append(Beside(reference, _figure(entry, reference.figure, board.dataset.class_names) if entry else None))
    return found


def beside_table(board: Board, references: Sequence[Reference]) -> TextTable:
    """The same in markdown: a line per row and condition, ``theirs → ours`` in a column per kind of figure."""
    names = list(dict.fromkeys(reference.figure for reference in references))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    remarks: dict[tuple[str, str], dict[str, None]] = {}
    for line in beside(board, references):
        there = line.reference
        place = (there.row, there.condition)
        lines.setdefault(place, {})[there.figure] = f"{100 * there.value:.1f} → {interval(line.ours)}"
        remarks.setdefault(place, {}).update({there.remark: None} if there.remark else {})
    headers = [name.replace(RECALL, "recall of ").replace("macro_f1", "macro F1") for name in names]
    return TextTable(
        ["Model", "Condition", *(escape(name[:1].upper() + name[1:]) for name in headers), "Remark"],
        [
            [
                *(escape(text) for text in place),
                *(found.get(name, NONE) for name in names),
                escape("; ".join(remarks[place])) or NONE,
            ]
            for place, found in lines.items()
        ],
        left=(0, 1, 2 + len(names)),
    ).without_empty()


def _figure(entry: Entry, name: str, class_names: Sequence[str]) -> Figure | None:
    rates = entry.accuracy or entry.rates
    if rates is None:
        return None
    if name == "accuracy":
        return rates.share
    if name.startswith(RECALL):
        label = name.removeprefix(RECALL)
        return rates.per_class[class_names.index(label)] if label in class_names else None
    return (entry.details or {}).get(name)
