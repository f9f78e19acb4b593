"""Reading the tables of boards in tests."""

from __future__ import annotations

from robbench.leaderboards.sheet import Sheet


def heads(sheet: Sheet) -> list[str]:
    """The headings, with their remarks in brackets."""
    return [f"{heading.text} ({heading.below})" if heading.below else heading.text for heading in sheet.headings]


def lines(sheet: Sheet) -> list[list[str]]:
    """The texts of the cells, with their remarks in brackets."""
    return [[f"{cell.text} ({cell.below})" if cell.below else cell.text for cell in line.cells] for line in sheet.lines]


def first(sheet: Sheet) -> dict[str, str]:
    """The first line by heading."""
    return dict(zip(heads(sheet), lines(sheet)[0], strict=True))
