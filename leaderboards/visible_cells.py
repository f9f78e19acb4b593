"""Cells and notes from elsewhere with unsafe characters of their texts escaped, as boards show them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robbench.core.safe_text import visible, visible_values
from robbench.results.schema import BoardNote, CellResult, Record

_ESCAPE = re.compile(r"\\[bfnrtu]")


def visible_cells(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells in whose records no text has an unsafe character; see ``robbench.core.safe_text``.

    Outcomes stay, and so do records without such characters.
    """
    return [(_visible_record(record), outcome) for record, outcome in cells]


def _visible_record(record: Record) -> Record:
    text = record.model_dump_json()  # far faster than to look at every text
    if visible(text) == text and not _ESCAPE.search(text):
        return record
    return Record.model_validate(visible_values(record.model_dump()))


def visible_note(note: BoardNote) -> BoardNote:
    """The same of what a board says that does not follow from its records; its paragraphs stay."""
    texts = {name: visible(getattr(note, name), keep="\n") for name in ("about", "differences")}
    return BoardNote.model_validate(visible_values(note.model_dump()) | texts)
