"""``robbench compare``: two models or runs, paired, with thresholds for continuous integration."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.safe_text import visible

if TYPE_CHECKING:
    from robbench.api.report import Report


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="before: a store, a board in it, or a published board; DIR#ROW")
    parser.add_argument("second", metavar="B", help="after, likewise")
    parser.add_argument("--row-a", metavar="NAME", help="the model of A, where it has several")
    parser.add_argument("--row-b", metavar="NAME", help="the model of B, where it has several")
    parser.add_argument(
        "--fail-drop",
        type=_command.points,
        metavar="POINTS",
        help="exit with 1 where B lies more percentage points below A, clean or under any attack that both have",
    )
    parser.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="WHAT=PERCENT",
        help="exit with 1 where B has less, as linf:8/255=40 (worst case), clean=90 or a condition's label; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def _action(options: argparse.Namespace) -> int:
    from robbench.api.comparison import compare
    from robbench.api.thresholds import below, dropped, read_threshold

    for threshold in options.fail_below:
        read_threshold(threshold)
    before, row_before = resolved(options.first, options.row_a)
    after, row_after = resolved(options.second, options.row_b)
    found = compare(before, after, row_before, row_after)
    missed = [text for threshold in options.fail_below if (text := below(after, threshold, row_after))]
    missed += [] if options.fail_drop is None else dropped(found, options.fail_drop)
    if options.json:
        print(json.dumps({**found.to_dict(), "missed": missed}, indent=1, ensure_ascii=False))
    else:
        print(visible(found.summary(), keep="\n"), end="")
    for text in missed:
        print(f"robbench: missed: {visible(text)}", file=sys.stderr)
    return 1 if missed else 0


def resolved(text: str, row: str | None = None) -> tuple[Report, str | None]:
    """The report that a text means, and the row that it or an option names.

    Args:
        text: A directory of results, with ``#`` and the name of a row behind it where need be.
        row: What an option names; goes before what the text does.

    Raises:
        RequestError: If there are no results there.
    """
    from robbench.api.loading import load

    place, _, named = (text, "", "") if Path(text).is_dir() else text.partition("#")
    return load(place), row or named or None


COMMAND = _command.Command(
    place=25,
    summary="compare two models or runs, with thresholds for CI",
    about="Compares two models under every condition that both have, paired by test image: differences with intervals "
    "and p, McNemar's counts, classes. Thresholds give exit status 1 where they are missed.",
    examples=(
        ("robbench compare before after", "two stores with one model each"),
        ("robbench compare runs#plain runs#defended", "two rows of one board"),
        ("robbench compare main pr --fail-drop 2 --fail-below linf:8/255=40", "a check for CI"),
    ),
    options=_options,
    action=_action,
    done="0 no threshold missed",
    failed="1 a threshold was missed, or results cannot be read",
)
