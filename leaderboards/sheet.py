"""A table as data: what its cells say, sort by and rest on. Markdown, HTML and CSV are rendered from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol, TypeAlias, TypeVar

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.markdown import NONE, abbreviated, number, percent
from robbench.leaderboards.markdown import ends as ends_of
from robbench.results.schema import Record, digest

Place: TypeAlias = tuple[str, str]
"""Labels of a row and of a condition."""

Records: TypeAlias = Mapping[Place, Sequence[Record]]
"""The records of a board by place, by rising seed."""


class _Labeled(Protocol):
    @property
    def label(self) -> str: ...


R = TypeVar("R", bound=_Labeled)


class Detail(IntEnum):
    """Where a column is shown: in every rendering, on the page and in CSV, or in CSV alone."""

    README = 0
    PAGE = 1
    DATA = 2


@dataclass(frozen=True)
class Evidence:
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
    figures: Mapping[str, Estimate] = field(default_factory=dict)

    @classmethod
    def of(cls, title: str, places: Iterable[Place], figures: Mapping[str, Estimate] | None = None) -> Evidence:
        """The evidence for a number that rests on several places."""
        chosen = tuple(places)
        return cls(f"figure-{digest([title, chosen])[:12]}", title, chosen, figures or {})


@dataclass(frozen=True)
class TableCell:
    """One cell of a table, as plain text.

    Attributes:
        text: What it shows.
        sort: What a number sorts by, unrounded; None for texts and where there is none.
        figure: The number with its interval and seeds, where it has them.
        evidence: What the number rests on.
        hint: More about the number, in a line.
        below: A remark or an interval: in brackets, or in a smaller line below.
        bar: A share between 0 and 1 to draw behind the number, with the ends of its interval.
    """

    text: str
    sort: float | None = None
    figure: Estimate | None = None
    evidence: Evidence | None = None
    hint: str = ""
    below: str = ""
    bar: tuple[float, float, float] | None = None

    @classmethod
    def share(
        cls, figure: Estimate | None, evidence: Evidence | None = None, *, bar: bool = False, ends: bool = False
    ) -> TableCell:
        """A share in percent, with its interval as a hint or, if ``ends``, beside it."""
        if figure is None:
            return cls(NONE)
        low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
        text = ends_of(figure)
        return cls(
            percent(figure),
            figure.value,
            figure,
            evidence,
            hint=f"95 %: {text}, n = {figure.n}" if text else f"n = {figure.n}",
            below=text if ends else "",
            bar=(figure.value, low, high) if bar else None,
        )

    @classmethod
    def percentage(cls, value: float | None, evidence: Evidence | None = None) -> TableCell:
        """A share in percent that has no interval, or a dash."""
        return cls(NONE) if value is None else cls(f"{100 * value:.1f}", value, evidence=evidence)

    @classmethod
    def quantity(cls, found: Estimate | float | None, evidence: Evidence | None = None, text: str = "{}") -> TableCell:
        """A number of three significant digits, with its interval beside it where it has one; or a dash."""
        if found is None:
            return cls(NONE)
        if not isinstance(found, Estimate):
            return cls(text.format(number(found)), found, evidence=evidence)
        known = found.low is not None and found.high is not None
        ends = f"{number(found.low or 0)}–{number(found.high or 0)}" if known else ""
        return cls(text.format(number(found.value)), found.value, found, evidence, below=ends)

    @classmethod
    def count(cls, value: float, evidence: Evidence | None = None) -> TableCell:
        """A whole number."""
        return cls(f"{value:,.0f}", value, evidence=evidence)

    @classmethod
    def magnitude(cls, value: float, evidence: Evidence | None = None) -> TableCell:
        """A large whole number in short, in full as a hint; a dash for 0, which is not known."""
        return cls(abbreviated(value), value, evidence=evidence, hint=f"{value:,.0f}") if value else cls(NONE)


@dataclass(frozen=True)
class Heading:
    """The heading of a column.

    Attributes:
        text: Its words.
        number: Whether the column holds numbers.
        rising: Whether the lowest comes first when it is sorted.
        below: A remark, as on the number of samples.
        detail: Where the column is shown.
    """

    text: str
    number: bool = True
    rising: bool = False
    below: str = ""
    detail: Detail = Detail.README


@dataclass(frozen=True)
class SheetLine:
    """A line of a table, and the board's row that it tells of, where it tells of one."""

    cells: tuple[TableCell, ...]
    row: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        caption: What it holds.
        headings: Of the columns.
        lines: Each with as many cells.
        label: The column that names a line.
        total: Whether the last line sums up the others.
    """

    caption: str
    headings: tuple[Heading, ...]
    lines: tuple[SheetLine, ...]
    label: int = 0
    total: bool = False

    def upto(self, detail: Detail) -> Sheet:
        """The table without the columns of more detail."""
        return self._kept([at for at, heading in enumerate(self.headings) if heading.detail <= detail])

    def without_empty(self) -> Sheet:
        """The table without the columns that show nothing."""
        shown = [[line.cells[at].text not in ("", NONE) for line in self.lines] for at in range(len(self.headings))]
        return self._kept([at for at, column in enumerate(shown) if any(column)])

    def _kept(self, columns: Sequence[int]) -> Sheet:
        lines = tuple(replace(line, cells=tuple(line.cells[at] for at in columns)) for line in self.lines)
        label = columns.index(self.label) if self.label in columns else 0
        return replace(self, headings=tuple(self.headings[at] for at in columns), lines=lines, label=label)

    def sources(self) -> list[Evidence]:
        """What its numbers rest on, where that is more than one place."""
        cells = [cell for line in self.lines for cell in line.cells]
        return [cell.evidence for cell in cells if cell.evidence and cell.evidence.title]


def by_samples(sheet: Sheet) -> list[Sheet]:
    """The table if all its numbers are of as many samples; otherwise a table for each number of samples.

    Columns that name the lines stand in each, those of numbers without samples in the last.
    """
    sizes: dict[int, frozenset[int]] = {}
    for at, heading in enumerate(sheet.headings):
        if heading.number:
            sizes[at] = frozenset(cell.figure.n for line in sheet.lines if (cell := line.cells[at]).figure)
    known = list(dict.fromkeys(found for found in sizes.values() if found))
    if len(known) < 2:
        return [sheet]
    made = []
    for found in known:
        last = found == known[-1]
        numbers = [at for at, size in sizes.items() if size == found or (last and not size)]
        named = [at for at in range(len(sheet.headings)) if at not in sizes]
        text = "–".join(f"{n:,}" for n in dict.fromkeys((min(found), max(found))))
        made.append(replace(sheet._kept(sorted([*named, *numbers])), caption=f"{sheet.caption}, n = {text}"))
    return made


def word(text: str) -> Heading:
    """The heading of a column that holds text."""
    return Heading(text, number=False)


def words(*texts: str) -> tuple[Heading, ...]:
    """Headings of columns that hold text."""
    return tuple(map(word, texts))


def numbers(*texts: str) -> tuple[Heading, ...]:
    """Headings of columns that hold numbers."""
    return tuple(map(Heading, texts))


def texts(*found: str) -> tuple[TableCell, ...]:
    """Cells that hold text."""
    return tuple(map(TableCell, found))


def by_row(
    caption: str, columns: Sequence[tuple[Heading, Callable[[R], TableCell]]], rows: Iterable[R], label: int = 0
) -> Sheet:
    """A table of one line per row of the board.

    Args:
        caption: What it holds.
        columns: For each its heading, and what makes its cell of a row.
        rows: The rows.
        label: The column that names a line.
    """
    lines = tuple(SheetLine(tuple(cell(row) for _, cell in columns), row.label) for row in rows)
    return Sheet(caption, tuple(heading for heading, _ in columns), lines, label)
