"""What figures are drawn from, what they give, and the contract between the two."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from robbench.core.component import Component
from robbench.leaderboards.artifact_reader import Materials
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.figure_manifest import Section
from robbench.leaderboards.plots._style import Fonts
from robbench.leaderboards.plots._words import short
from robbench.leaderboards.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet


class Sketch(NamedTuple):
    """A drawing that is not written yet.

    Attributes:
        name: Stem of its files: letters, digits, ``.``, ``_`` and ``-``.
        title: A short heading.
        caption: What it shows, as plain text: the result first.
        alt: What somebody who cannot see it is told instead, as plain text.
        sheet: The drawing, a figure of matplotlib.
        main: Whether the markdown board shows it; the page shows all.
    """

    name: str
    title: str
    caption: str
    alt: str
    sheet: Sheet
    main: bool = False


@dataclass(frozen=True)
class Scene:
    """What figures are drawn from.

    Attributes:
        board: What the board says.
        table: The records with their outcomes that it was made from.
        materials: Images, histories of training and embeddings, where there are any.
        fonts: To draw with.
    """

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
        return self.board.clean_label

    def seed(self, row: Row) -> int:
        """The seed whose images and embeddings stand for a row: its first."""
        return row.seeds[0]


def breakable(label: str) -> str:
    """A condition's label with spaces where a line may end."""
    return label.replace("->", " → ").replace(",", ", ")


@dataclass(frozen=True)
class Figure(Component):
    """A kind of figure of a board."""

    section: ClassVar[Section] = "ranking"
    """The part of the board that it illustrates."""
    position: ClassVar[int] = 100
    """Its place among the figures of its section: those with smaller numbers come first."""
    photograph: ClassVar[bool] = False
    """Whether it shows images of the data set, which keep their colors on a dark page and are no line drawings."""

    @abc.abstractmethod
    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """The drawings, none where there is nothing to show.

        Settings of matplotlib are those of the board while they are made, and drawings are written by the caller: so
        the same scene gives the same bytes.

        Args:
            scene: What there is to draw from.
        """
