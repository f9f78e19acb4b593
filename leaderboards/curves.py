"""Robust accuracy over the size of the change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.evaluation.statistics import Scores, combine, covered, survival
from robbench.leaderboards.aggregates import Rates, distance_scores, rates
from robbench.leaderboards.table import Table, Threats
from robbench.results.schema import ConditionSpec

QUANTILES = (0.25, 0.5, 0.75, 1.0)
"""Of the changes that succeed, where curves of attacks without an eps are read off."""


@dataclass(frozen=True)
class CurveLine:
    """One model's curve.

    Attributes:
        points: Robust accuracy against every known change of at most each of the curve's radii.
        area: Normalized area under the curve, from 0 to the last radius.
    """

    points: tuple[Rates, ...]
    area: Rates


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over the size of the change; samples misclassified from the start count as wrong at any size.

    Attributes:
        label: What is done: any attack within a ball of the norm, as ``Linf``; or the condition.
        norm: In which changes are measured.
        conditions: Those whose successes it combines.
        radii: Where it is read off, rising.
        lines: By the models' labels, of those for which all of the conditions are done.
    """

    label: str
    norm: str
    conditions: tuple[str, ...]
    radii: tuple[float, ...]
    lines: Mapping[str, CurveLine]


def strength(table: Table, threats: Threats) -> tuple[Curve, ...]:
    """Robust accuracy over eps, for each norm with attacks at two eps or more above 0.

    Per seed and sample, the smallest change known to fool the model counts, of all attacks of the norm at any eps, and
    of those that look for a smallest change on all of the same samples: so successes carry forward to larger eps.
    """
    curves = []
    for norm in dict.fromkeys(threat.norm for threat in threats):
        radii = sorted(threat.eps for threat in threats if threat.norm == norm and threat.eps > 0)
        conditions = [spec for threat, specs in threats.items() if threat.norm == norm for spec in specs]
        conditions += [spec for spec in table.conditions if _seeks(spec, norm) and _covers(spec, conditions)]
        if len(radii) > 1:
            distances = _distances(table, norm, conditions)
            curves.append(_curve(table, norm.capitalize(), norm, conditions, radii, distances))
    return tuple(curves)


def _seeks(condition: ConditionSpec, norm: str) -> bool:
    """Whether it is a single untargeted attack of minimum norm."""
    if condition.kind != "attack" or condition.target not in (None, "all"):
        return False
    stage = condition.stages[0]
    return stage.eps is None and stage.norm == norm


def _covers(condition: ConditionSpec, others: Sequence[ConditionSpec]) -> bool:
    """Whether it was run on as many samples as each of the others."""
    sizes = [math.inf if spec.sample is None else spec.sample for spec in (condition, *others)]
    return sizes[0] >= max(sizes[1:], default=0)


def sizes(table: Table) -> tuple[Curve, ...]:
    """For each attack without an eps that ever succeeds, robust accuracy over the size of its change.

    It is read off where a quarter, half, three quarters and all of the successes over all rows lie, rounded up to two
    digits.
    """
    curves = []
    for condition in table.conditions:
        if condition.kind != "attack" or condition.stages[0].bounded:
            continue
        norm = condition.stages[0].norm
        distances = _distances(table, norm, [condition])
        known = np.concatenate([part.values for parts in distances.values() for part in parts] or [np.zeros(0)])
        known = known[(known > 0) & np.isfinite(known)]
        if len(known):
            radii = list(dict.fromkeys(_round_up(float(radius)) for radius in np.quantile(known, QUANTILES)))
            curves.append(_curve(table, condition.label, norm, [condition], radii, distances))
    return tuple(curves)


def _distances(table: Table, norm: str, conditions: Sequence[ConditionSpec]) -> dict[str, list[Scores]]:
    """Per row and seed, the smallest known distance of the samples that all conditions cover."""
    found = {}
    for model in table.models:
        outcomes = [table.outcomes(model.label, condition.label) for condition in conditions]
        done = [
            [distance_scores(outcome, norm, condition.stages[0].eps) for outcome in by_seed]
            for condition, by_seed in zip(conditions, outcomes, strict=True)
            if by_seed is not None
        ]
        if len(done) == len(conditions):
            found[model.label] = [combine(parts, np.min) for parts in zip(*done, strict=True)]
    return found


def _curve(
    table: Table,
    label: str,
    norm: str,
    conditions: Sequence[ConditionSpec],
    radii: Sequence[float],
    distances: Mapping[str, Sequence[Scores]],
) -> Curve:
    lines = {}
    for model, by_seed in distances.items():
        points = [rates([survival(part, radius) for part in by_seed], table.num_classes) for radius in radii]
        area = rates([covered(part, radii[-1]) for part in by_seed], table.num_classes)
        if area is not None:
            lines[model] = CurveLine(tuple(point[0] for point in points if point), area[0])
    return Curve(label, norm, tuple(condition.label for condition in conditions), tuple(radii), lines)


def _round_up(value: float) -> float:
    """``29.71`` as ``30.0``: so that no success lies above the last radius."""
    digits = 1 - math.floor(math.log10(value))
    return round(math.ceil(round(value * 10.0**digits, 9)) / 10.0**digits, max(digits, 0))
