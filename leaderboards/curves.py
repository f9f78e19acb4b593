"""Robust accuracy over the size of the change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.evaluation.statistics import Scores, combine, covered, survival
from robbench.leaderboards.aggregates import Estimate, Rates, distance_scores, on, rates
from robbench.leaderboards.comparison import attack_identity, common_images
from robbench.leaderboards.table import Table, Threats, is_smallest_change
from robbench.results.schema import ConditionSpec, Measure

QUANTILES = (0.25, 0.5, 0.75, 1.0)
"""Of the changes that succeed, where curves of attacks without an eps are read off."""


@dataclass(frozen=True)
class CurveLine:
    """One model's curve.

    Attributes:
        clean: Accuracy on the curve's images without any change.
        points: Robust accuracy against every known change of at most each of the curve's radii.
        area: Normalized area under the curve, from 0 to the last radius.
        median: Median size of the smallest known changes that succeed, mean over seeds; None where none does.
    """

    clean: Rates
    points: tuple[Rates, ...]
    area: Rates
    median: Estimate | None


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over the size of the change; samples misclassified from the start count as wrong at any size.

    Attributes:
        label: What is done: any attack within a ball of the norm, as ``Linf``; or the condition.
        norm: In which changes are measured.
        conditions: Those whose successes it combines.
        radii: Where it is read off, rising.
        lines: By the models' labels, of those for which all of the conditions are done, all on the same images.
    """

    label: str
    norm: str
    conditions: tuple[str, ...]
    radii: tuple[float, ...]
    lines: Mapping[str, CurveLine]


def strength(table: Table, threats: Threats) -> tuple[Curve, ...]:
    """Robust accuracy over eps, for each norm with attacks that were run at two eps or more above 0.

    The attacks are the same at every eps: those that were run at all eps of the curve, which are as many as any attack
    was run at. Per seed and sample, the smallest change known to fool the model counts, of these attacks at any eps,
    and of those that look for a smallest change on all of the same samples: so successes carry forward to larger eps.
    """
    curves = []
    for norm in dict.fromkeys(threat.norm for threat in threats):
        by_eps = {threat.eps: specs for threat, specs in threats.items() if threat.norm == norm and threat.eps > 0}
        radii, conditions = _same_attacks(by_eps)
        if len(radii) > 1:
            images = common_images(table, conditions)
            seeking = [spec for spec in table.conditions if seeks_smallest(spec, norm)]
            conditions += [spec for spec in seeking if np.isin(images, common_images(table, [spec])).all()]
            curves.append(_curve(table, norm.capitalize(), norm, conditions, radii))
    return tuple(curves)


def _same_attacks(by_eps: Mapping[float, Sequence[ConditionSpec]]) -> tuple[list[float], list[ConditionSpec]]:
    """The eps at which some attacks were all run, as many eps as any attack was run at, with their conditions."""
    run_at: dict[str, set[float]] = {}
    for eps, specs in by_eps.items():
        for spec in specs:
            run_at.setdefault(attack_identity(spec), set()).add(eps)
    widest = max(run_at.values(), key=len, default=set())
    chosen = {attack for attack, sizes in run_at.items() if sizes >= widest}
    radii = sorted(widest)
    return radii, [spec for eps in radii for spec in by_eps[eps] if attack_identity(spec) in chosen]


def seeks_smallest(condition: ConditionSpec, norm: str) -> bool:
    """Whether it is a single untargeted attack that looks for the smallest change in a norm."""
    return is_smallest_change(condition) and condition.target in (None, "all") and condition.stages[0].norm == norm


def sizes(table: Table, threats: Threats) -> tuple[Curve, ...]:
    """Robust accuracy over the size of the change, where attacks without an eps ever succeed.

    A curve for each norm in which untargeted attacks look for the smallest change, of the smallest that is known: that
    of any attack of the norm, within a ball too. And a curve for each attack of that kind towards a target. They are
    read off where a quarter, half, three quarters and all of the successes over all rows lie, rounded up to two digits.
    """
    curves = []
    for norm in dict.fromkeys(stage.norm for spec in table.conditions for stage in spec.stages):
        seeking = [spec for spec in table.conditions if seeks_smallest(spec, norm)]
        bounded = [spec for threat, specs in threats.items() if threat.norm == norm for spec in specs]
        if seeking:
            curves.append(_read_off(table, f"any {norm.capitalize()} attack", norm, [*seeking, *bounded]))
    for spec in table.conditions:
        if is_smallest_change(spec) and not seeks_smallest(spec, spec.stages[0].norm):
            curves.append(_read_off(table, spec.label, spec.stages[0].norm, [spec]))
    return tuple(curve for curve in curves if curve.radii)


def _read_off(table: Table, label: str, norm: str, conditions: Sequence[ConditionSpec]) -> Curve:
    known = [part.values for parts in _distances(table, norm, conditions).values() for part in parts]
    found = np.concatenate(known or [np.zeros(0)])
    found = found[(found > 0) & np.isfinite(found)]
    quantiles = np.quantile(found, QUANTILES) if len(found) else ()
    return _curve(table, label, norm, conditions, list(dict.fromkeys(_round_up(float(size)) for size in quantiles)))


def _distances(table: Table, norm: str, conditions: Sequence[ConditionSpec]) -> dict[str, list[Scores]]:
    """Per row and seed, the smallest known distance of the samples that all rows have under all conditions."""
    images = common_images(table, conditions)
    found = {}
    for model in table.models:
        outcomes = [table.outcomes(model.label, condition.label) for condition in conditions]
        done = [
            [distance_scores(outcome, norm, condition.stages[0].eps) for outcome in by_seed]
            for condition, by_seed in zip(conditions, outcomes, strict=True)
            if by_seed is not None
        ]
        if len(done) == len(conditions):
            kept = [on(combine(parts, np.min), images) for parts in zip(*done, strict=True)]
            if all(len(part) == len(images) for part in kept):
                found[model.label] = kept
    return found


def _curve(table: Table, label: str, norm: str, conditions: Sequence[ConditionSpec], radii: Sequence[float]) -> Curve:
    lines = {}
    for model, by_seed in _distances(table, norm, conditions).items() if radii else ():
        at = [rates([survival(part, radius) for part in by_seed], table.num_classes) for radius in (0.0, *radii)]
        area = rates([covered(part, radii[-1]) for part in by_seed], table.num_classes)
        if area is not None:
            clean, *points = (found[0] for found in at if found)
            lines[model] = CurveLine(clean, tuple(points), area[0], _median(by_seed))
    return Curve(label, norm, tuple(condition.label for condition in conditions), tuple(radii), lines)


def _median(by_seed: Sequence[Scores]) -> Estimate | None:
    changes = [part.values[(part.values > 0) & np.isfinite(part.values)] for part in by_seed]
    known = [Measure(float(np.median(found)), n=len(found)) for found in changes if len(found)]
    return Estimate.mean(known) if len(known) == len(by_seed) else None


def _round_up(value: float) -> float:
    """``29.71`` as ``30.0``: so that no success lies above the last radius."""
    digits = 1 - math.floor(math.log10(value))
    return round(math.ceil(round(value * 10.0**digits, 9)) / 10.0**digits, max(digits, 0))
