"""Rules that a component is checked against, one finding for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Finding:
    """What came of one rule.

    Attributes:
        rule: The rule, in a few words.
        passed: Whether the component keeps to it; None where the rule does not apply to it or could not be checked.
        detail: What is broken, why the rule does not apply, or what was seen.
    """

    rule: str
    passed: bool | None
    detail: str = ""


class Broken(Exception):
    """The rule is broken, as the message says."""


class NotApplicable(Exception):
    """The rule does not apply, for the reason in the message."""


def demand(holds: bool, otherwise: str) -> None:
    """Raise ``Broken`` with a message unless something holds."""
    if not holds:
        raise Broken(otherwise)


@dataclass(frozen=True)
class Rule(Generic[S]):
    """A rule with its check.

    Attributes:
        name: The rule, in a few words.
        check: From what is checked to what was seen, raising ``Broken`` or ``NotApplicable``.
    """

    name: str
    check: Callable[[S], str]


def judge(rules: Sequence[Rule[S]], subject: S) -> list[Finding]:
    """A finding for every rule; an error in one is a finding too, and does not keep the others from being checked."""
    return [_judge(rule, subject) for rule in rules]


def _judge(rule: Rule[S], subject: S) -> Finding:
    try:
        return Finding(rule.name, True, rule.check(subject))
    except Broken as error:
        return Finding(rule.name, False, str(error))
    except NotApplicable as error:
        return Finding(rule.name, None, f"not applicable: {error}")
    except (Exception, SystemExit) as error:
        return Finding(rule.name, False, crash(error))


def crash(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
