"""Rules that a component is checked against, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class RuleResult:
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


class Several(Broken):
    """Several rules that are checked as one are broken.

    Args:
        results: One for each.
    """

    def __init__(self, results: Sequence[RuleResult]) -> None:
        super().__init__("; ".join(f"{result.rule}: {result.detail}" for result in results))
        self.results = results


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

    def results(self, subject: S) -> list[RuleResult]:
        """One result; an error in the check is one too, and does not keep other rules from being checked."""
        try:
            return [RuleResult(self.name, True, self.check(subject))]
        except NotApplicable as error:
            return [RuleResult(self.name, None, f"not applicable: {error}")]
        except Several as error:
            return list(error.results)
        except (Exception, SystemExit) as error:
            return [RuleResult(self.name, False, str(error) if isinstance(error, Broken) else crash(error))]


def judge(rules: Sequence[Rule[S]], subject: S) -> list[RuleResult]:
    """The results of all rules."""
    return [result for rule in rules for result in rule.results(subject)]


def crash(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
