"""``robbench publish``: check boards and copy them with what they rest on."""

from __future__ import annotations

import argparse

from robbench.cli import _command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=_command.place,
        required=True,
        metavar="PLACE",
        help="where to publish: a directory, or an address as s3://bucket/boards",
    )
    _command.add_boards(parser)
    parser.add_argument(
        "--from",
        dest="others",
        type=_command.place,
        action="append",
        default=[],
        metavar="PLACE",
        help="a published board of the same grid and data set to merge with, here or at an address; repeatable",
    )
    parser.add_argument("--incomplete", action="store_true", help="even where cells failed or were not run")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._display import show_published
    from robbench.core.registry import Registry
    from robbench.results.sharing import share
    from robbench.results.store import Store

    store = Store(options.out)
    boards = _command.noted_boards(store, options.grid, options.board)
    registry = Registry(tuple(options.plugin))
    published = share(store, boards, options.to, options.others, registry, options.incomplete)
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
        (
            "robbench publish --to hf://datasets/us/boards --from s3://lab/boards",
            "elsewhere (pip install 'robbench[remote]')",
        ),
    ),
    options=_options,
    action=_action,
    done="0 all boards published",
    failed="1 a board was refused",
)
