"""A board in markdown, for the page of a code host: the answer first, and no longer than it can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robbench.leaderboards.board import Board
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.findings import about_ranking, check_findings, comparison_note, findings
from robbench.leaderboards.markdown import code, escape, paragraphs, value_list
from robbench.leaderboards.sheet import Detail, Sheet, TableCell
from robbench.leaderboards.tables.bounds import sentences
from robbench.leaderboards.tables.contents import sheets
from robbench.leaderboards.tables.method import usual_recipe
from robbench.leaderboards.templates import environment
from robbench.results.schema import AUDIT_STEPS, MANY_CLASSES, BoardNote

FIRST = ("clean-vs-robust", "ranking")
"""Names of the figure under the ranking, the preferred one first."""
RANKED = 100
"""So many rows the ranking shows."""
SHOWN = 20
"""So many lines any other table shows."""
PAIRS = 12
"""Up to so many single changes each stands by itself; of more there are means."""


def readme(board: Board, note: BoardNote | None = None, pictures: Sequence[Picture] = ()) -> str:
    """The board in markdown, of at most 400 lines; what does not fit is on the page and in CSV.

    Args:
        board: The board.
        note: What it says that does not follow from its cells; nothing where there is none.
        pictures: Figures that lie in the board's directory.
    """
    note = note or BoardNote(grid=board.grid, title=board.title)
    parts = sheets(board, note, Detail.README)
    if len(board.pairs) > PAIRS:
        parts["changes"] = []
    else:
        parts["effects"] = []
    named = {picture.name: picture for picture in pictures}
    made = environment(autoescape=False)
    made.filters |= {"md": escape, "code": code, "paragraphs": paragraphs, "values": value_list}
    made.filters["table"] = markdown_table
    text = made.get_template("README.md.jinja").render(
        board=board,
        note=note,
        findings=findings(board),
        proved=sentences(board, note.bounds),
        about_ranking=about_ranking(board),
        tests=comparison_note(board),
        checks=check_findings(board),
        parts=parts,
        picture=next((named[name] for name in FIRST if name in named), None),
        usual=usual_recipe(board),
        audit_steps=AUDIT_STEPS,
        ranked=RANKED,
        many=len(board.dataset.class_names) > MANY_CLASSES,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown_table(sheet: Sheet, most: int = SHOWN, file: str = "") -> str:
    """A table in markdown, without a newline at the end.

    Args:
        sheet: The table.
        most: How many lines it shows; where there are more, a line tells how many.
        file: The CSV file that holds the others, beside the page.
    """
    rule = [("--:" if heading.number else ":--") for heading in sheet.headings]
    head = [_beside(escape(heading.text), heading.below) for heading in sheet.headings]
    lines = [[_text(cell) for cell in line.cells] for line in sheet.lines[:most]]
    if sheet.total and len(sheet.lines) <= most:
        lines[-1] = [f"**{text}**" for text in lines[-1]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
    left = len(sheet.lines) - most
    if left > 0:
        places = " and in ".join([*([f"[{file}]({file})"] if file else []), "[index.html](index.html)"])
        text += f"\n\n*{left} more in {places}.*"
    return text


def _text(cell: TableCell) -> str:
    return _beside(f"**{escape(cell.text)}**" if cell.bar else escape(cell.text), cell.below)


def _beside(text: str, below: str) -> str:
    return f"{text} ({escape(below)})" if below else text
