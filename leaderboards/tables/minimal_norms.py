"""Minimal-norm attacks beside the best known distances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from robbench.leaderboards.board import Board
from robbench.leaderboards.markdown import NONE
from robbench.leaderboards.optimality import ENVELOPE, NormComparison
from robbench.leaderboards.sheet import Evidence, Heading, Sheet, SheetLine, TableCell, numbers, texts, words

AS_CHEAP = 1.1
"""Budgets count as equal within this factor of passes: attacks cannot spend a budget to the last pass."""


@dataclass(frozen=True)
class Standing:
    """How near an attack comes to the smallest distances that are known, over all rows.

    Attributes:
        label: The attack.
        optimality: Global optimality, the mean over rows; None where it is not defined for any.
        lowest: The lowest of any row, and which; None of a single row.
        success: Mean over rows.
        forwards: Forward passes per image, mean over rows.
        backwards: Backward passes.
    """

    label: str
    optimality: float | None
    lowest: tuple[float, str] | None
    success: float | None
    forwards: float | None
    backwards: float | None

    @property
    def passes(self) -> float:
        """Forward and backward passes per image."""
        return (self.forwards or 0.0) + (self.backwards or 0.0)


def about_norms(board: Board) -> bool:
    """Whether a board is about attacks that look for the smallest change: most of its attacks do."""
    compared = sum(len(one.conditions) for one in board.minimal_norms)
    return 2 * compared > sum(spec.kind == "attack" for spec in board.conditions)


def standings(board: Board, compared: NormComparison) -> list[Standing]:
    """The attacks of a norm, the nearest to the best known distances first."""
    found = [_standing(board, compared, label) for label in compared.conditions]
    return sorted(found, key=lambda one: -(one.optimality or 0.0))


def frontier(found: Sequence[Standing]) -> list[Standing]:
    """The attacks that none comes nearer than for as many passes, the nearest first."""
    kept: list[Standing] = []
    known = [one for one in found if one.optimality is not None]
    for one in sorted(known, key=lambda one: (-(one.optimality or 0.0), one.passes)):
        if not kept or AS_CHEAP * one.passes < kept[-1].passes:
            kept.append(one)
    return kept


def best_by_budget(board: Board) -> Sheet:
    """What to use at which budget: the attacks of each norm that none comes nearer than for as many passes."""
    lines = []
    for compared in board.minimal_norms:
        evidence = {label: _evidence(compared, label, _rows(board, compared)) for label in compared.conditions}
        for one in frontier(standings(board, compared)):
            cells = (
                TableCell(compared.norm.capitalize()),
                TableCell(without_norm(one.label)),
                TableCell.percentage(one.optimality, evidence[one.label]),
                TableCell.quantity(one.passes, evidence[one.label]),
            )
            lines.append(SheetLine(cells))
    headings = (*words("Norm", "Attack"), *numbers("Optimality", "Passes per image"))
    return Sheet("Nearest attack by budget", headings, tuple(lines), label=1)


def without_norm(label: str) -> str:
    """An attack's label without the norm that stands beside it."""
    return label.partition("@")[0]


def attacks(board: Board, compared: NormComparison) -> Sheet:
    """A line per attack, the best first: global optimality, which is the mean over rows, and the lowest of any row."""
    lines = []
    for one in standings(board, compared):
        evidence = _evidence(compared, one.label, _rows(board, compared))
        cells = (
            TableCell(without_norm(one.label)),
            TableCell.percentage(one.optimality, evidence),
            TableCell.percentage(one.lowest[0], evidence) if one.lowest else TableCell(NONE),
            TableCell(one.lowest[1] if one.lowest else NONE),
            TableCell.percentage(one.success, evidence),
            TableCell.quantity(one.forwards, evidence),
            TableCell.quantity(one.backwards, evidence),
        )
        lines.append(SheetLine(cells))
    headings = (
        *words("Attack"),
        Heading("Optimality", below=f"n = {compared.n}"),
        *numbers("Lowest"),
        *words("Of model"),
        *numbers("Success", "Forward passes", "Backward passes"),
    )
    return Sheet(f"Minimal-norm attacks: {compared.norm.capitalize()}", headings, tuple(lines)).without_empty()


def _standing(board: Board, compared: NormComparison, label: str) -> Standing:
    reached = {row: compared.lines[row][label] for row in _rows(board, compared)}
    local = {row: one.optimality.value for row, one in reached.items() if one.optimality}
    lowest = min(local, key=lambda row: local[row], default="")
    return Standing(
        label=label,
        optimality=_mean(local.values()),
        lowest=(local[lowest], lowest) if len(local) > 1 else None,
        success=_mean([one.success.value for one in reached.values()]),
        forwards=_mean([one.forwards for one in reached.values()]),
        backwards=_mean([one.backwards for one in reached.values()]),
    )


def _rows(board: Board, compared: NormComparison) -> list[str]:
    return [row.label for row in board.rows if row.label in compared.lines]


def reaches(board: Board, compared: NormComparison) -> Sheet:
    """A line per row and attack, and one for the best known distances of the row."""
    lines = []
    for row in _rows(board, compared):
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
