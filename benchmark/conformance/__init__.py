"""Checks one component against the contract of its kind.

A component enters; a finding for each rule leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robbench.conformance.attacks import check_attack
from robbench.conformance.components import ARCHITECTURES, BALANCERS, DEFENSES, OBJECTIVES
from robbench.conformance.data import DATASETS, METRICS, Files
from robbench.conformance.figures import FIGURES
from robbench.conformance.rules import Finding, Rule, judge
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import KINDS, Kind, Registry
from robbench.planning.component_spec import choose, read_text
from robbench.planning.conditions import attack_norms

_RULES: Mapping[Kind, tuple[Rule[Any], ...]] = {
    "dataset": DATASETS,
    "balancer": BALANCERS,
    "architecture": ARCHITECTURES,
    "objective": OBJECTIVES,
    "defense": DEFENSES,
    "metric": METRICS,
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


def check(registry: Registry, kind: Kind, name: str) -> list[Finding]:
    """What a component keeps to and what it breaks.

    Args:
        registry: The known components.
        kind: Its kind.
        name: Its name, with or without parameters in brackets.

    Raises:
        RequestError: If there is no such component or the parameters do not fit.
    """
    choice = choose(registry, kind, name, "")
    if kind == "attack":
        return check_attack(choice.component, attack_norms(registry, choice))
    return judge(_RULES[kind], Files(choice.component) if kind == "dataset" else choice.component)
