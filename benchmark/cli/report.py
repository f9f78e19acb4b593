"""``robbench report``: boards and figures again, from the records alone."""

from __future__ import annotations

import argparse

from robbench.cli import _command


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_boards(parser)
    parser.add_argument(
        "--published", type=_command.path, metavar="DIR", help="write published boards again, from their records"
    )
    parser.add_argument("--fresh", action="store_true", help="make boards again that did not change, too")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._display import show_boards, show_published
    from robbench.core.registry import Registry

    registry = Registry(tuple(options.plugin))
    if options.published:
        from robbench.results.publishing import rewrite

        return show_published(rewrite(options.published, registry), options.published)
    from robbench.execution.boards import write_boards
    from robbench.results.store import Store

    store = Store(options.out)
    wanted = _command.noted_boards(store, options.grid, options.board)
    with store.lock():
        boards = write_boards(store, wanted, registry, again=options.fresh)
    show_boards(boards, store.root)
    return 1 if boards.failed() or boards.refused else 0


COMMAND = _command.Command(
    place=40,
    summary="write boards and figures again, from records alone",
    about="Writes boards and figures again from what the store holds, where they would not be the same; nothing is "
    "trained or attacked. Use it after an update of robbench, or when boards were deleted.",
    examples=(
        ("robbench report", "all boards of the store runs"),
        ("robbench report --grid full --out other", "the boards of one grid, of another store"),
        ("robbench report --published boards", "published boards, from the records beside them"),
    ),
    options=_options,
    action=_action,
    failed="1 some cells of these boards failed, or the store is damaged",
)
