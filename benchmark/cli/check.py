"""``robbench check``: one component against the contract of its kind."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robbench.cli import _command
from robbench.core.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from robbench.conformance.rules import RuleResult


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a component, as in pgd or 'pgd[steps=20]'")
    parser.add_argument("--kind", metavar="KIND", help="its kind, where several kinds share the name")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.conformance import check, kinds_of
    from robbench.core.registry import Registry

    registry = Registry(tuple(options.plugin))
    kinds, kind = kinds_of(registry, options.name), options.kind
    if kind is not None and kind not in kinds:
        raise RequestError(f'there is no {kind} "{options.name}"; {did_you_mean(kind, kinds)}', "--kind")
    checked = [kind] if kind else kinds
    kept = [_show(kind, options.name, check(registry, kind, options.name)) for kind in checked]
    return 0 if all(kept) else 1


COMMAND = _command.Command(
    place=80,
    summary="check a component against the contract of its kind",
    about="Runs the conformance suite of its kind on a component and says which rules it breaks. Nothing is trained: "
    "an attack meets linear models, where the best possible result is known. Use it on a plugin before a run.",
    examples=(
        ("robbench check 'pgd[steps=20]'", "an attack with a parameter"),
        ("robbench check gray --plugin gray.py", "a component of your own"),
        ("robbench check perturbation --kind defense", "a name that two kinds share"),
    ),
    options=_options,
    action=_action,
    done="0 no rule is broken",
    failed="1 a rule is broken",
)


def _show(kind: str, name: str, findings: Sequence[RuleResult]) -> bool:
    """What a component keeps to and what it breaks; returns whether it breaks nothing."""
    from rich.text import Text

    from robbench.cli._display import Terminal, table

    words = {True: Text("pass", style="green"), False: Text("broken", style="red"), None: Text("n/a", style="dim")}
    made = table("", "rule", "finding")
    for finding in findings:
        made.add_row(words[finding.passed], finding.rule, finding.detail)
    console = Terminal()
    console.print(f"\n{kind} {name}\n")
    console.print(made)
    broken = sum(finding.passed is False for finding in findings)
    console.print(f"\n{broken} of {len(findings)} rules broken")
    return not broken
