"""The rules of a component as pytest cases."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robbench.conformance.rules import Broken, NotApplicable, Rule, crash
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import Kind


@dataclass(frozen=True)
class Check:
    """A rule with the component that it is for; calling it raises or skips the test.

    Attributes:
        rule: The rule.
        subject: Makes what the rule looks at.
    """

    rule: Rule[Any]
    subject: Callable[[], Any]

    def __call__(self) -> None:
        """Check the rule."""
        import pytest

        try:
            self.rule.check(self.subject())
        except NotApplicable as error:
            pytest.skip(f"not applicable: {error}")
        except SystemExit as error:
            raise Broken(crash(error)) from error


def cases(
    suites: Mapping[Kind, tuple[Sequence[Rule[Any]], Callable[[], Any]]], expected_failures: Mapping[str, str]
) -> Any:
    """A ``pytest.mark.parametrize`` of the argument ``check``, a case for each rule.

    Args:
        suites: The rules of each kind, and what makes their subject.
        expected_failures: Reasons by rule.

    Raises:
        RequestError: If there is no rule of some name, or a reason is empty.
    """
    import pytest

    known = [rule.name for rules, _ in suites.values() for rule in rules]
    for name, reason in expected_failures.items():
        if name not in known:
            raise RequestError(f'there is no rule "{name}"; {did_you_mean(name, known)}', "expected_failures")
        if not reason.strip():
            raise RequestError(f'"{name}" is expected to fail without a reason', "expected_failures")
    made = []
    for kind, (rules, make) in suites.items():
        subject = functools.cache(make)
        for rule in rules:
            expected = rule.name in expected_failures
            marks = [pytest.mark.xfail(reason=expected_failures[rule.name], strict=True)] if expected else []
            made.append(pytest.param(Check(rule, subject), id=f"{kind}: {rule.name}", marks=marks))
    return pytest.mark.parametrize("check", made)
