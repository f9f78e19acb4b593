"""What a check of the rules found."""

from __future__ import annotations

from robbench.conformance import RULES
from robbench.conformance.rules import RuleResult, judge
from robbench.conformance.scenarios import Bench
from robbench.core.attack import Attack
from robbench.core.threat_model import Norm


def broken(results: list[RuleResult]) -> dict[str, str]:
    return {finding.rule: finding.detail for finding in results if finding.passed is False}


def status(results: list[RuleResult]) -> dict[str, bool | None]:
    return {finding.rule: finding.passed for finding in results}


def check_attack(attack: Attack, norms: tuple[Norm, ...]) -> list[RuleResult]:
    return judge(RULES["attack"], Bench(attack, norms))
