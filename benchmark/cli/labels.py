"""``robbench labels``: images of a data set whose label looks wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robbench.cli import _command

if TYPE_CHECKING:
    from robbench.data.label_issues import Listing
    from robbench.planning.plan import Data


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="NAME", help="the data set")
    _command.add_data(parser)
    _command.add_store(parser)
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.core.registry import Registry
    from robbench.data.label_issues import examine, write
    from robbench.leaderboards.plots._label_sheet import SHOWN, label_sheet
    from robbench.planning.planner import load_data
    from robbench.results.store import Store

    store = Store(options.out)
    store.check()
    data = load_data(Registry(tuple(options.plugin)), options.dataset, options.data_dir, options.out, "--dataset")
    listing = examine(data.decoded, data.splits)
    sheet = label_sheet(listing.worst(SHOWN)) if len(listing.found) else None
    with store.lock():
        files = write(listing, store.root / "labels" / _folder(data), sheet)
    _show(data.choice.label, listing, files)
    return 0


def _folder(data: Data) -> str:
    """A name that tells images apart where the data set's does not, since its files can lie anywhere."""
    from robbench.core.atomic_io import file_name

    name = file_name(data.choice.label)
    return f"{name}-{data.decoded.fingerprint[:8]}" if data.choice.component.unidentifying() else name


COMMAND = _command.Command(
    place=70,
    summary="list the images whose label looks wrong",
    about="Lists the images whose label a cross-validated linear model doubts, with a contact sheet of the worst. The "
    "balancer without-suspects leaves them out of training.",
    examples=(("robbench labels --dataset digits", "suspects of the digits, under runs/labels"),),
    options=_options,
    action=_action,
)


def _show(dataset: str, listing: Listing, files: Sequence[Path]) -> None:
    from robbench.cli._display import Terminal, table

    console = Terminal()
    made = table("class", "suggested most", numbers=("images", "suspects", "share"))
    for name, images, suspects, suggested in listing.counts():
        made.add_row(name, suggested, f"{images:,}", f"{suspects:,}", f"{100 * suspects / images:.1f} %")
    for remark in listing.decoded.remarks:
        console.say(f"note: {remark}")
    console.print(f"\n{dataset}\n")
    console.print(made)
    model = f"a simple model with {100 * listing.found.balanced_accuracy:.1f} % balanced accuracy"
    if len(listing.found):
        console.print(
            f"\nSuspects, not errors: {model} doubts these labels. The less accurate it is, the more of them are "
            "merely hard images."
        )
    else:
        console.print(f"\nNone: {model} doubts no label.")
    console.say("Files: " + ", ".join(str(path) for path in files))
