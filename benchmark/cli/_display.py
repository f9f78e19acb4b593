"""What several commands show in a terminal: tables, durations, sizes, and the top of a board."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robbench.core.safe_text import visible

if TYPE_CHECKING:
    from robbench.execution.boards import Boards
    from robbench.results.publishing import Published

ROWS_SHOWN = 10
_NARROWEST = 60


class Terminal(Console):
    """A console for text of whoever wrote it.

    Nothing in the text is markup, and what a terminal would obey is shown instead; see ``robbench.core.safe_text``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)
        # In fewer columns tables lose whole columns; the terminal wraps lines without loss.
        self.width = max(self.width, _NARROWEST)

    def render_str(self, text: str, **options: Any) -> Text:
        """What every text becomes, by itself or in a table."""
        return super().render_str(visible(text, keep="\n"), **options)

    def say(self, text: str) -> None:
        """Print one line, which the terminal may wrap, so that a path or an error can be copied."""
        self.print(text, soft_wrap=True)


def table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without frame, two spaces between columns.

    Args:
        columns: Headings of columns of text.
        numbers: Headings of columns of numbers, right of those.
    """
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in columns:
        made.add_column(heading, overflow="fold")
    for heading in numbers:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def compact_table(*columns: str) -> Table:
    """A table with one space between columns, for lists that have to fit a screen; only the last column wraps."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))
    for heading in columns:
        made.add_column(heading, no_wrap=heading != columns[-1])
    return made


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in ``1:02:03`` and ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_boards(boards: Boards, root: Path, tables: bool = True) -> None:
    """The top of every board, the files that were written, and the cells that lack or failed.

    Args:
        boards: The boards.
        root: The store's directory.
        tables: Whether to show more than where they are.
    """
    from robbench.leaderboards.summary import summary_rows

    console = Terminal()
    if not tables:
        for board in (*boards.cells, *boards.unchanged):
            console.say(f"Board: {root / 'leaderboards' / board / 'index.html'}")
        return
    for board, cells in boards.cells.items():
        rows = summary_rows(cells, boards.rank_by[board])
        headings = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows[:ROWS_SHOWN])]
        made = table(*headings)
        for row in rows[:ROWS_SHOWN]:
            made.add_row(*(row[name] for name in headings))
        console.print(f"\n{board}\n")
        console.print(made)
        if len(rows) > ROWS_SHOWN:
            console.print(f"and {len(rows) - ROWS_SHOWN} more models on the board")
        console.say(f"\nBoard: {root / 'leaderboards' / board / 'index.html'} (beside it README.md, CSV, JSON)")
    for board in boards.unchanged:
        console.say(f"\nBoard: {root / 'leaderboards' / board / 'index.html'} (nothing has changed)")
    for board, count in boards.missing.items():
        if count:
            console.print(f"{board}: {count} cells not run yet")
    for record in boards.failed():
        console.say(visible(f"failed: {record.spec.model.label} · {record.spec.condition.label}: {record.reason}"))
    _show_refused(boards.refused)


def show_published(published: Published, target: Path | str) -> int:
    """What was published and what was refused; returns the exit status."""
    from robbench.results.remote_directory import shown

    console = Terminal()
    for board, count in published.cells.items():
        place = target / board if isinstance(target, Path) else f"{shown(target)}/{board}"
        console.say(f"{board}: {count} cells checked and published in {place}")
        for remark in published.remarks[board]:
            console.say(f"  {remark}")
    for where in published.unused:
        console.say(f"{where}: not used; no board here is of its grid and data set")
    _show_refused(published.refused)
    return 1 if published.refused else 0


def _show_refused(refused: Mapping[str, str]) -> None:
    for board, reason in refused.items():
        print(f"robbench: {visible(board)}: {reason}", file=sys.stderr)
