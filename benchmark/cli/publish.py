"""``robbench publish``: check boards and copy them with what they rest on."""

from __future__ import annotations

import argparse

from robbench.cli import _command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=_command.path, required=True, metavar="DIR", help="the directory to publish into")
    _command.add_boards(parser)
    parser.add_argument(
        "--from",
        dest="others",
        type=_command.path,
        action="append",
        default=[],
        metavar="DIR",
        help="a published board of the same grid and data set to merge with; repeatable",
    )
    parser.add_argument("--incomplete", action="store_true", help="even where cells failed or were not run")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._display import show_published
    from robbench.core.registry import Registry
    from robbench.results.publishing import publish
    from robbench.results.store import Store

    store = Store(options.out)
    boards = _command.noted_boards(store, options.grid, options.board)
    registry = Registry(tuple(options.plugin))
    published = publish(store, boards, options.to, options.others, registry, options.incomplete)
    return show_published(published, options.to)


COMMAND = _command.Command(
    place=50,
    summary="check boards and copy them with their records",
    about="Computes every number of the boards anew from the outcomes, refuses a board that differs, and copies the "
    "others with their records and outcomes. Use it to share results, or to merge them with those of others.",
    examples=(
        ("robbench publish --to boards", "all boards of the store runs"),
        ("robbench publish --to boards --board full-digits", "one of them"),
        ("robbench publish --to boards --from theirs/full-digits", "merged with a board of others"),
    ),
    options=_options,
    action=_action,
    done="0 all boards published",
    failed="1 a board was refused",
)
