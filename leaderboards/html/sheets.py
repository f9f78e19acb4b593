"""Tables of a page: numbers that know what they rest on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from robbench.leaderboards.aggregates import Figure
from robbench.leaderboards.markdown import NONE, TextTable, percent
from robbench.results.schema import Record, digest

Place: TypeAlias = tuple[str, str]
"""Labels of a row and of a condition."""

Records: TypeAlias = Mapping[Place, Sequence[Record]]
"""The records of a board by place, by rising seed."""

_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@dataclass(frozen=True)
class Source:
    """What a number rests on.

    Attributes:
        anchor: Where the page tells of it.
        title: What the number is; empty where it is a single place's.
        places: Those whose records it is made from.
        figures: The number and those that belong to it, by name; empty where it is a single place's.
    """

    anchor: str
    title: str
    places: tuple[Place, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @classmethod
    def single(cls, records: Records, row: str, condition: str) -> Source | None:
        """The source of a place's own numbers, or None where there is no record of it."""
        found = records.get((row, condition))
        return cls(f"record-{found[0].key}", "", ((row, condition),)) if found else None

    @classmethod
    def of(cls, title: str, places: Iterable[Place], figures: Mapping[str, Figure] | None = None) -> Source:
        """The source of a number that rests on several places."""
        chosen = tuple(places)
        return cls(f"figure-{digest([title, chosen])[:12]}", title, chosen, figures or {})


@dataclass(frozen=True)
class Cell:
    """A place in a table.

    Attributes:
        text: What it shows, plain.
        sort: What a number sorts by; None for texts and where there is none.
        source: What a number rests on.
        hint: More about a number, in a line.
        below: A second, smaller line, in markdown.
        bar: A share between 0 and 1 to draw behind the number, with the ends of its interval.
        markdown: Whether ``text`` is markdown.
    """

    text: str
    sort: float | None = None
    source: Source | None = None
    hint: str = ""
    below: str = ""
    bar: tuple[float, float, float] | None = None
    markdown: bool = False

    @classmethod
    def share(cls, figure: Figure | None, source: Source | None, *, bar: bool = False, ends: bool = False) -> Cell:
        """A share in percent; its interval as a hint or, if ``ends``, in a second line."""
        if figure is None:
            return cls(NONE)
        low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
        known = figure.low is not None
        text = f"{100 * low:.1f}–{100 * high:.1f}" if known else ""
        return cls(
            percent(figure),
            sort=figure.value,
            source=source,
            hint=f"95 %: {text}, n = {figure.n}" if known else f"n = {figure.n}",
            below=text if ends else "",
            bar=(figure.value, low, high) if bar else None,
        )


@dataclass(frozen=True)
class Heading:
    """The heading of a column.

    Attributes:
        text: Its words.
        number: Whether the column holds numbers.
        rising: Whether the lowest comes first when it is sorted.
        below: A second, smaller line.
        markdown: Whether ``text`` is markdown.
    """

    text: str
    number: bool = True
    rising: bool = False
    below: str = ""
    markdown: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table, and the board's row that it tells of, where it tells of one."""

    cells: tuple[Cell, ...]
    row: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of a page.

    Attributes:
        caption: What it holds.
        headings: Of the columns.
        lines: Each with as many cells.
        label: The column that names a line.
        total: Whether the last line sums up the others.
    """

    caption: str
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    label: int = 0
    total: bool = False

    def without_empty(self) -> Sheet:
        """The table without the columns that show nothing."""
        kept = [
            at for at in range(len(self.headings)) if any(line.cells[at].text not in ("", NONE) for line in self.lines)
        ]
        lines = tuple(replace(line, cells=tuple(line.cells[at] for at in kept)) for line in self.lines)
        return replace(self, headings=tuple(self.headings[at] for at in kept), lines=lines)

    def sources(self) -> list[Source]:
        """What its numbers rest on, where that is more than one place."""
        return [cell.source for line in self.lines for cell in line.cells if cell.source and cell.source.title]


def sheet_of(
    caption: str,
    table: TextTable,
    rows: Mapping[str, str],
    source: Callable[[Sequence[str]], Source | None] = lambda texts: None,
    *,
    label: int = 0,
    total: bool = False,
) -> Sheet:
    """A markdown board's table as a page's.

    Args:
        caption: What it holds.
        table: The table.
        rows: Labels of the board's rows by how the table writes them; empty where its lines tell of something else.
        source: What the numbers of a line rest on, given its texts.
        label: The column that names a line.
        total: Whether the last line sums up the others.
    """
    headings = [
        Heading(text, number=place not in table.left, markdown=True) for place, text in enumerate(table.headers)
    ]
    lines = []
    for texts in table.lines:
        found = source(texts)
        cells = tuple(
            Cell(text, markdown=True) if place in table.left or text == NONE else _number(text, found)
            for place, text in enumerate(texts)
        )
        lines.append(Line(cells, rows.get(texts[label])))
    return Sheet(caption, tuple(headings), tuple(lines), label, total)


def _number(text: str, source: Source | None) -> Cell:
    # Where a number from elsewhere stands before ours, ours sorts.
    digits = _NUMBER.search(text.rpartition("→")[2])
    return Cell(text, float(digits.group().replace(",", "")) if digits else None, source, markdown=True)
