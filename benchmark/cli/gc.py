"""``robbench gc``: what the store holds, without leftovers and without boards that are named."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.errors import RequestError

if TYPE_CHECKING:
    from robbench.results.garbage_collection import Survey

_SHOWN = 10


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_store(parser)
    parser.add_argument(
        "--board",
        action="append",
        default=[],
        metavar="NAME",
        help="also delete this board, with the cells and models that no other board has; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")


def _action(options: argparse.Namespace) -> int:
    from robbench.results.garbage_collection import remove, survey
    from robbench.results.store import Store

    store = Store(options.out)
    if not store.root.is_dir():
        raise RequestError(f'"{options.out}" is not there', "--out")
    with store.lock(exclusive=True):
        found = survey(store, tuple(dict.fromkeys(options.board)))
        _show(found, options.dry_run)
        if not options.dry_run:
            remove(found)
    return 0


COMMAND = _command.Command(
    place=90,
    summary="show what the store holds, delete leftovers or boards",
    about="Shows what the store holds and what goes, then deletes that: by default leftovers of unfinished work alone, "
    "never what a run has finished. Finished cells and models go with a board that --board names, or are made again by "
    "robbench run --fresh. Refused while another command writes to the store.",
    examples=(
        ("robbench gc --dry-run", "what the store holds, its boards, and what would be deleted"),
        ("robbench gc --out other", "delete leftovers in another store"),
        ("robbench gc --board full-digits --dry-run", "what deleting this board would free"),
    ),
    options=_options,
    action=_action,
)


def _show(found: Survey, dry_run: bool) -> None:
    from robbench.cli._display import Terminal, table

    console = Terminal()
    boards = table("board", numbers=("cells of no other",))
    for board, count in found.own.items():
        boards.add_row(board, str(count))
    if found.own:
        console.print(boards)
        console.print()
    made = table("", numbers=("kept", "size", "would be deleted" if dry_run else "to delete", "size"))
    for holding in found.holdings:
        (kept, size), (removed, freed) = holding.kept, holding.removed
        made.add_row(holding.name, str(kept), _bytes(size), str(removed), _bytes(freed))
    console.print(made)
    going = [
        *found.leftovers,
        *(found.store.root / "leaderboards" / board for board in found.boards),
        *map(found.store.cell_dir, found.cells),
        *map(found.store.model_dir, found.models),
    ]
    for path in going[:_SHOWN]:
        console.say(f"{'would be deleted' if dry_run else 'deleting'}: {path}")
    if len(going) > _SHOWN:
        console.say(f"and {len(going) - _SHOWN} more")


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
