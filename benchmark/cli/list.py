"""``robbench list``: what is registered, as an overview or a kind a screen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.errors import RequestError
from robbench.core.safe_text import visible_json

if TYPE_CHECKING:
    from robbench.cli._inventory import AttackTraits, Item

NORMS = ("linf", "l2", "l1", "l0", "none")
NEEDS = ("gradients", "scores", "decisions", "nothing")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", metavar="KIND", help="attack, defense, dataset, … (default: all kinds)")
    parser.add_argument("name", nargs="?", metavar="NAME", help="one in full, as robbench show does")
    only = parser.add_argument_group("filters")
    only.add_argument("--search", metavar="TEXT", help="components whose name or description has this text")
    only.add_argument("--norm", choices=NORMS, help="attacks that work in this norm")
    only.add_argument("--needs", choices=NEEDS, help="attacks that need this and no more")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._inventory import ALL_KINDS, item, items
    from robbench.cli.show import show_one
    from robbench.core.registry import Registry

    registry = Registry(tuple(options.plugin))
    kind = _kind(options)
    if options.name is not None:
        found = [item(registry, kind, options.name)]
    else:
        kinds = [kind] if kind else [name for name in ALL_KINDS if name != "toolbox"]
        found = [listed for name in kinds for listed in items(registry, name).values()]
    found = [listed for listed in found if listed.fits(options.search, options.norm, options.needs)]
    if options.json:
        print(visible_json(json.dumps([listed.plain() for listed in found], indent=2, ensure_ascii=False, default=str)))
    elif not found:
        print("nothing fits these filters")
    elif options.name is not None:
        show_one(found[0])
    elif not kind and not options.search:
        _show_overview(found)
    else:
        _show_lines(found)
    return 0


def _kind(options: argparse.Namespace) -> str:
    """The kind that is asked for, also in the plural, or an empty text for all."""
    from robbench.cli._inventory import ALL_KINDS, kind_called

    kind = kind_called(options.kind, ALL_KINDS) if options.kind else ""
    if options.norm or options.needs:
        if kind not in ("", "attack"):
            raise RequestError(f"--norm and --needs filter attacks, not the kind {kind}")
        return "attack"
    return kind


COMMAND = _command.Command(
    place=30,
    summary="show attacks, defenses, data sets and other components",
    about="Shows what is registered: all kinds, or a kind with a line a component. robbench show has one in full.",
    examples=(
        ("robbench list attack", "norms, passes and needs of every attack"),
        ("robbench list attack --norm l2 --needs scores", "L2 attacks that need scores but no gradients"),
        ("robbench list --search imbalanced --json", "for machines"),
    ),
    options=_options,
    action=_action,
)


def _show_overview(found: Sequence[Item]) -> None:
    from robbench.cli._display import Terminal, table

    made = table("kind", "names")
    for kind in dict.fromkeys(listed.kind for listed in found):
        made.add_row(kind, "  ".join(listed.name for listed in found if listed.kind == kind))
    console = Terminal()
    console.print(made)
    console.print("\nrobbench list KIND: a line each; robbench show KIND NAME: one in full")


def _show_lines(found: Sequence[Item]) -> None:
    from rich.text import Text

    from robbench.cli._display import Terminal, compact_table

    console = Terminal()
    kinds = list(dict.fromkeys(listed.kind for listed in found))
    for position, kind in enumerate(kinds):
        of_kind = [listed for listed in found if listed.kind == kind]
        console.print("\n" * (position > 0), end="")
        if kind == "toolbox":
            console.print("\n".join(listed.name for listed in of_kind))
        elif kind == "attack":
            made = compact_table("attack", "norms", "passes", "needs", "what it is")
            made.columns[2].justify = "right"
            made.box, made.padding = None, (0, 1, 0, 0)  # a screen has no line to spare
            for listed in of_kind:
                brief = Text(listed.brief, no_wrap=True, overflow="ellipsis")
                made.add_row(listed.name, *_traits(listed.attack), brief)
            console.print(made)
            console.print("passes at most, of ten classes; *: no eps. More: show attack NAME, list toolbox")
        else:
            made = compact_table(kind, "what it is")
            for listed in of_kind:
                made.add_row(listed.name, listed.brief)
            console.print(made)
        for listed in of_kind:
            if listed.origin:
                console.say(f"{listed.name}: {listed.origin}")


def _traits(traits: AttackTraits | None) -> list[str]:
    if traits is None:
        return ["", "", ""]
    star = "" if traits.takes_eps or traits.norms == ("none",) else "*"
    passes = "–" if traits.passes is None else f"{sum(traits.passes):,}"
    return [" ".join(traits.norms) + star, passes, traits.needs]
