"""What figures are drawn from, and which rows go into those that cannot hold all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from robbench.leaderboards.artifact_reader import Materials
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.markdown import counted, listed
from robbench.leaderboards.plots.style import Fonts
from robbench.leaderboards.plots.words import short
from robbench.leaderboards.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

CROWD = 6
"""Rows in one plot at most."""


class Sketch(NamedTuple):
    """A figure that is drawn but not written yet."""

    picture: Picture
    sheet: Sheet


@dataclass(frozen=True)
class Scene:
    """What figures are drawn from."""

    board: Board
    table: Table
    materials: Materials
    fonts: Fonts

    def class_name(self, label: int, limit: int = 16) -> str:
        """A class's name for a figure, or its number where no font has all its letters."""
        name = self.board.dataset.class_names[label]
        return self.fonts.text(name if self.fonts.has(name) else f"class {label}", limit)

    def class_names(self, limit: int = 16) -> list[str]:
        """All of them."""
        return [self.class_name(label, limit) for label in range(len(self.board.dataset.class_names))]

    def said(self, label: int) -> str:
        """A class's name in a sentence."""
        name = short(self.board.dataset.class_names[label], 30)
        return name if any(letter.isalpha() for letter in name) else f"class {name}"

    def condition(self, label: str, limit: int = 60) -> str:
        """A condition's label for a figure."""
        return self.fonts.text(breakable(label), limit)

    def numbered_classes(self) -> str:
        """A sentence on which classes are called by their number, a space before it; empty where none is."""
        names = enumerate(self.board.dataset.class_names)
        told = [f"class {label} is {short(name, 40)}" for label, name in names if not self.fonts.has(name)]
        return f" Names that no font here can draw are numbers: {', '.join(told)}." if told else ""

    @property
    def clean(self) -> str | None:
        """Label of the condition that changes nothing; None where it was not run."""
        return next((condition.label for condition in self.board.conditions if condition.kind == "clean"), None)

    def seed(self, row: Row) -> int:
        """The seed whose images and embeddings stand for a row: its first."""
        return row.seeds[0]


def breakable(label: str) -> str:
    """A condition's label with spaces where a line may end."""
    return label.replace("->", " → ").replace(",", ", ")


def is_undefended(row: Row) -> bool:
    """Whether it was trained without a defense."""
    return all(part.name == "none" for part in row.model.defenses)


def leading(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first row and the first undefended one; one row if they are the same, none of none."""
    first = [*rows[:1], *[row for row in rows if is_undefended(row)][:1]]
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
    lead = [row.label for row in leading(rows)]
    there = [label for label in lead if label in {row.label for row in shown}]
    parts = ["the highest" if label == rows[0].label else "the highest undefended one" for label in there]
    rest = len(shown) - len(there)
    parts += [f"the highest of {counted(rest, 'other kind')} of training"] * (rest > 0)
    return f" Of {counted(len(rows), 'row')}, {listed(parts)} {'is' if len(shown) == 1 else 'are'} shown."
