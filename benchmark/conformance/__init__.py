"""Checks one component against the contract of its kind.

A component enters; a result for each rule leaves, or a pytest case for each with ``parametrize_with_checks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robbench.conformance.attacks import ATTACKS
from robbench.conformance.certificates import CERTIFICATES, Claims
from robbench.conformance.components import ARCHITECTURES, BALANCERS, OBJECTIVES
from robbench.conformance.data import DATASETS, METRICS, DatasetFiles
from robbench.conformance.defenses import DEFENSES
from robbench.conformance.figures import FIGURES
from robbench.conformance.pytest_cases import cases
from robbench.conformance.rules import Rule, RuleResult, judge
from robbench.conformance.scenarios import Bench
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import KINDS, Kind, Registry
from robbench.planning.component_spec import choose, read_text
from robbench.planning.conditions import attack_norms

RULES: Mapping[Kind, tuple[Rule[Any], ...]] = {
    "dataset": DATASETS,
    "balancer": BALANCERS,
    "architecture": ARCHITECTURES,
    "objective": OBJECTIVES,
    "defense": DEFENSES,
    "metric": METRICS,
    "attack": ATTACKS,
    "certificate": CERTIFICATES,
    "figure": FIGURES,
}


def kinds_of(registry: Registry, name: str) -> tuple[Kind, ...]:
    """The kinds that have a component of a name which takes the parameters that are given with it.

    Args:
        registry: The known components.
        name: Its name, with or without parameters in brackets.

    Raises:
        RequestError: If there is none, with the nearest of any kind, or none takes the parameters.
    """
    plain, _ = read_text(name, "")
    named: list[Kind] = [kind for kind in KINDS if plain in registry.entries(kind)]
    if plain.startswith("art:"):
        named = ["attack"]
    if not named:
        known = {other for kind in KINDS for other in registry.entries(kind)}
        raise RequestError(f'there is no component "{plain}"; {did_you_mean(plain, known)}')
    fitting, errors = [], []
    for kind in named:
        try:
            choose(registry, kind, name, "")
            fitting.append(kind)
        except RequestError as error:
            errors.append(error)
    if not fitting:
        raise errors[0]
    return tuple(fitting)


def check(registry: Registry, kind: Kind, name: str) -> list[RuleResult]:
    """What a component keeps to and what it breaks.

    Args:
        registry: The known components.
        kind: Its kind.
        name: Its name, with or without parameters in brackets.

    Raises:
        RequestError: If there is no such component or the parameters do not fit.
    """
    return judge(RULES[kind], _subject(registry, kind, name))


def _subject(registry: Registry, kind: Kind, name: str) -> Any:
    """What the rules of a kind look at: the component, with what is made of it once."""
    choice = choose(registry, kind, name, "")
    if kind == "attack":
        return Bench(choice.component, attack_norms(registry, choice))
    if kind == "certificate":
        return Claims(choice.component, registry.entry(kind, choice.name).mark.norms)
    return DatasetFiles(choice.component) if kind == "dataset" else choice.component


def parametrize_with_checks(
    name: str, plugins: Sequence[str | Path] = (), expected_failures: Mapping[str, str] | None = None
) -> Any:
    """Have a pytest function called with a check for every rule of a component; needs pytest.

    A rule that does not apply is skipped. Example::

        from robbench.conformance import parametrize_with_checks

        @parametrize_with_checks("mine", ["mine.py"], expected_failures={"passes as announced": "restarts vary"})
        def test_mine(check):
            check()

    Args:
        name: The component's name, with or without parameters in brackets.
        plugins: Plugin files that it may come from; installed plugins are known anyway.
        expected_failures: Reasons by rule why the component breaks it. One that is kept to after all is an error.

    Raises:
        RequestError: If there is no such component or no such rule, or a reason is empty.
    """
    registry = Registry(tuple(Path(plugin) for plugin in plugins))
    kinds = kinds_of(registry, name)
    suites = {kind: (RULES[kind], partial(_subject, registry, kind, name)) for kind in kinds}
    return cases(suites, expected_failures or {})
