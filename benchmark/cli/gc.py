"""``robbench gc``: what the store holds, without what no board needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.errors import RequestError

if TYPE_CHECKING:
    from robbench.results.garbage_collection import Holding


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_store(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _action(options: argparse.Namespace) -> int:
    from robbench.results.garbage_collection import clean
    from robbench.results.store import Store

    store = Store(options.out)
    if not store.root.is_dir():
        raise RequestError(f'"{options.out}" is not there', "--out")
    _show(clean(store, dry_run=options.dry_run), dry_run=options.dry_run)
    return 0


COMMAND = _command.Command(
    place=90,
    summary="show what the store holds, remove what no board needs",
    about="Removes what no board of the store needs any more, such as unfinished files, and says what is kept. "
    "Refused while another command writes to the store.",
    examples=(
        ("robbench gc --dry-run", "what would be removed, and how large it is"),
        ("robbench gc --out other", "clean another store"),
    ),
    options=_options,
    action=_action,
)


def _show(holdings: Sequence[Holding], dry_run: bool) -> None:
    from robbench.cli._display import Terminal, table

    made = table("", numbers=("kept", "size", "would be removed" if dry_run else "removed", "size"))
    for holding in holdings:
        (kept, size), (removed, freed) = holding.kept, holding.removed
        made.add_row(holding.name, str(kept), _bytes(size), str(removed), _bytes(freed))
    Terminal().print(made)


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
