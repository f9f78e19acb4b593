"""Minimal-norm attacks beside the best known distances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from robbench.leaderboards.board import Board
from robbench.leaderboards.markdown import NONE
from robbench.leaderboards.optimality import ENVELOPE, NormComparison
from robbench.leaderboards.sheet import Evidence, Heading, Sheet, SheetLine, TableCell, numbers, texts, words


def attacks(board: Board, compared: NormComparison) -> Sheet:
    """A line per attack, the best first: global optimality, which is the mean over rows, and the lowest of any row."""
    rows = [row.label for row in board.rows if row.label in compared.lines]
    lines = []
    for label in compared.conditions:
        reached = {row: compared.lines[row][label] for row in rows}
        evidence = _evidence(compared, label, rows)
        local = {row: one.optimality.value for row, one in reached.items() if one.optimality}
        lowest = min(local, key=lambda row: local[row], default="")
        cells = (
            TableCell(label),
            TableCell.percentage(_mean(local.values()), evidence),
            TableCell(NONE) if len(local) < 2 else TableCell.percentage(local[lowest], evidence),
            TableCell(lowest if len(local) > 1 else NONE),
            TableCell.percentage(_mean([one.success.value for one in reached.values()]), evidence),
            TableCell.quantity(_mean([one.forwards for one in reached.values()]), evidence),
            TableCell.quantity(_mean([one.backwards for one in reached.values()]), evidence),
        )
        lines.append(SheetLine(cells))
    lines.sort(key=lambda line: -(line.cells[1].sort or 0.0))
    headings = (
        *words("Attack"),
        Heading("Optimality", below=f"n = {compared.n}"),
        *numbers("Lowest"),
        *words("Of model"),
        *numbers("Success", "Forward passes", "Backward passes"),
    )
    return Sheet(f"Minimal-norm attacks: {compared.norm.capitalize()}", headings, tuple(lines)).without_empty()


def reaches(board: Board, compared: NormComparison) -> Sheet:
    """A line per row and attack, and one for the best known distances of the row."""
    lines = []
    for row in (row.label for row in board.rows if row.label in compared.lines):
        for label, one in compared.lines[row].items():
            evidence = _evidence(compared, label, [row])
            cells = (
                *texts(row, label),
                TableCell.share(one.success, evidence, ends=True),
                TableCell.quantity(one.median, evidence),
                TableCell(NONE) if one.optimality is None else TableCell.share(one.optimality, evidence),
                *(TableCell.quantity(count, evidence) for count in (one.forwards, one.backwards)),
            )
            lines.append(SheetLine(cells, row))
    headings = (
        *words("Model", "Attack"),
        *numbers("Success", "Median distance", "Optimality", "Forward passes", "Backward passes"),
    )
    return Sheet(f"Distances: {compared.norm.capitalize()}", headings, tuple(lines), label=1)


def _evidence(compared: NormComparison, label: str, rows: Sequence[str]) -> Evidence:
    """Optimality rests on all attacks, an attack's own figures among them."""
    title = f"{label} beside the best known {compared.norm.capitalize()} distances: {', '.join(rows)}"
    own = [label] if label != ENVELOPE else []
    places = [(row, condition) for row in rows for condition in dict.fromkeys((*own, *compared.known))]
    return Evidence.of(title, places)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
