"""Tables and paragraphs as plain text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from robbench.leaderboards.sheet import Heading, Sheet, TableCell

WIDTH = 80
_NARROWEST = 12


def text_table(made: Sheet, most: int) -> str:
    """A table as plain text of at most 80 columns: long texts are shortened, and a line tells how many are left out."""
    lines = [[_text(cell) for cell in line.cells] for line in made.lines[:most]]
    table = [[_text(TableCell(heading.text)) for heading in made.headings], *lines]
    widths = _fitting([max(map(len, column)) for column in zip(*table, strict=True)], made.headings)
    text = [cut(f"{made.caption}:", WIDTH)]
    for line in table:
        cells = [
            cut(cell, width).rjust(width) if heading.number else cut(cell, width).ljust(width)
            for cell, width, heading in zip(line, widths, made.headings, strict=True)
        ]
        text.append(f"  {'  '.join(cells)}".rstrip())
    left = len(made.lines) - most
    return "\n".join([*text, *([f"  and {left} more"] if left > 0 else [])])


def _text(cell: TableCell) -> str:
    return f"{cell.text} ({cell.below})" if cell.below else cell.text


def _fitting(widths: Sequence[int], headings: Sequence[Heading]) -> list[int]:
    """Widths of columns that fit a line: the widest text gives way first."""
    found = list(widths)
    while 2 + sum(found) + 2 * (len(found) - 1) > WIDTH:
        words_at = [at for at, heading in enumerate(headings) if not heading.number and found[at] > _NARROWEST]
        widest = max(words_at or range(len(found)), key=lambda at: found[at])
        found[widest] -= 1
    return found


def cut(text: str, width: int) -> str:
    """A text, shortened before its end where it is longer: labels of conditions end with what tells them apart."""
    end = width // 3
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def wrapped(text: str) -> str:
    """A paragraph on lines of at most 80 columns."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
