"""The conditions that a whole audit adds to a grid: attacks that may break a row where the grid's own did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from robbench.core.attack import Attack
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat, precedence, size_name
from robbench.planning.component_spec import Choice, choose
from robbench.planning.conditions import Condition, Stage, attack_norms

SAMPLE = 100
"""Images per check, stratified."""
DOUBLED_SAMPLE = 200
"""Images for twice the steps, of which three make more than half a point at the most."""
SURVIVORS = 16
"""Images for the random draws, among those that the row's attacks left."""
EVERYTHING = (0.5, 1.0)
"""Sizes in Linf that no model is robust to: at the first every image can become mid-gray, at the second any image."""

QUERIES = 1000
"""Of the search without gradients."""

_MARGINS = "apgd-margin[steps=20]"
"""The attack on margins, cheap and of as many steps as an audit asks for."""

_SEARCH: Mapping[Norm, str] = {"linf": "square", "l2": "square", "l1": "square", "l0": "sparse-rs"}


def audit_conditions(
    conditions: Sequence[Condition],
    reference: Mapping[Norm, float],
    registry: Registry,
    num_classes: int,
    rank_by: str = "",
) -> list[Condition]:
    """What the audit of PROTOCOL adds to the conditions of a grid, each as a check.

    In the threat model that ranks: one gradient step; gradients of margins, where nothing that ranks follows them; its
    strongest attack with twice the steps; search without gradients; images made on other models; and 10,000 random
    draws on images that the attacks left. In Linf, the strongest attack at sizes that no model is robust to. For rows
    with an inference-time defense, the strongest attack without it. And clean images, where gradients are looked at.

    Args:
        conditions: The grid's own, resolved.
        reference: The data set's reference eps by norm.
        registry: The known attacks.
        num_classes: Number of classes K.
        rank_by: The limits that rank where the grid says so, as ``linf@8/255``.

    Returns:
        Those that are not among the grid's own; none where no attack within a ball ranks.
    """
    known = {condition.label for condition in conditions}
    wanted = _wanted(conditions, reference, registry, num_classes, rank_by)
    found = {condition.label: condition for condition in wanted}
    return [condition for label, condition in found.items() if label not in known]


def ranking_threat(
    conditions: Sequence[Condition], reference: Mapping[Norm, float], rank_by: str = ""
) -> Threat | None:
    """The limits of the attacks that rank, those that the grid names where it does; None where there are none."""
    threats = [condition.stages[0].threat for condition in conditions if condition.ranks]
    usual = {str(norm): eps for norm, eps in reference.items()}
    return min(
        (Threat(threat.norm, threat.eps) for threat in threats if threat.eps),
        key=lambda threat: (
            size_name(threat.norm, threat.radius) != rank_by,
            precedence(threat.norm, threat.radius, usual),
        ),
        default=None,
    )


def _wanted(
    conditions: Sequence[Condition],
    reference: Mapping[Norm, float],
    registry: Registry,
    num_classes: int,
    rank_by: str,
) -> Iterator[Condition]:
    possible = [condition for condition in conditions if condition.refusal(num_classes) is None]
    threat = ranking_threat(possible, reference, rank_by)
    if threat is None:
        return
    yield Condition()
    stages = [condition.stages[0] for condition in possible if condition.ranks and condition.within(threat)]
    ranking = [stage.attack for stage in stages]
    ranking.sort(key=lambda attack: (attack.component.gradient_steps, attack.component.passes(num_classes)))
    strongest = ranking[-1]
    if threat.norm in attack_norms(registry, _attack(registry, "fgm")):
        yield _check(_attack(registry, "fgsm" if threat.norm == "linf" else "fgm"), threat)
    margins = _attack(registry, _MARGINS)
    if not any(stage.spec().audits for stage in stages) and threat.norm in attack_norms(registry, margins):
        yield _check(margins, threat)
    doubled = [twice for attack in reversed(ranking) if (twice := _doubled(registry, attack)) is not None]
    for attack in doubled[:1]:
        yield replace(_check(attack, threat), sample=DOUBLED_SAMPLE)
    yield replace(_check(strongest, threat), undefended=True)
    yield _check(_attack(registry, f"{_SEARCH[threat.norm]}[queries={QUERIES}]"), threat)
    if threat.norm in attack_norms(registry, _attack(registry, "transfer")):
        yield _check(_attack(registry, "transfer"), threat)
    if threat.norm in attack_norms(registry, _attack(registry, "noise-search")):
        yield replace(_check(_attack(registry, "noise-search"), threat), sample=SURVIVORS, survivors=True)
    if "linf" in attack_norms(registry, strongest) and strongest.component.gradient_steps > 1:
        for eps in EVERYTHING:
            yield _check(strongest, Threat("linf", eps))


def _attack(registry: Registry, text: str) -> Choice[Attack]:
    return choose(registry, "attack", text, "the audit")


def _check(attack: Choice[Attack], threat: Threat) -> Condition:
    return Condition((Stage(attack, threat),), sample=SAMPLE, check=True)


def _doubled(registry: Registry, attack: Choice[Attack]) -> Choice[Attack] | None:
    """The attack with twice the steps or, where it has none, twice the restarts; None where it has neither."""
    if not attack.component.white_box:
        return None
    parameters = attack.component.parameters()
    for name in ("steps", "restarts"):
        if name in parameters:
            kept = {field: parameters[field] for field in attack.component.unidentifying()}
            options = {**attack.component.changed({}), **kept, name: 2 * parameters[name]}
            return choose(registry, "attack", {"name": attack.name, **options}, "the audit")
    return None
