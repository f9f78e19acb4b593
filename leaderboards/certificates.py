"""Certified accuracy beside robust accuracy: a bound from below, one from above, and what lies between."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from robbench.evaluation.statistics import Scores, combine, survival
from robbench.leaderboards.aggregates import Rates, accuracy_scores, distance_scores, on, rates
from robbench.leaderboards.comparison import Images, common_images, worst_by_seed
from robbench.leaderboards.curves import seeks_smallest
from robbench.leaderboards.table import Table, ThreatModel, Threats
from robbench.results.schema import ConditionSpec, Outcome


@dataclass(frozen=True)
class CertifiedLine:
    """One row's bounds, all on the same images.

    Attributes:
        clean: Accuracy without any change.
        certified: Share that is right and proved to stay so.
        attacked: Share that no attack of the threat model fooled; None where none was run.
        gap: Share that is neither fooled nor proved.
        strongest: The attack that leaves the least; empty where none was run.
    """

    clean: Rates
    certified: Rates
    attacked: Rates | None
    gap: Rates | None
    strongest: str


@dataclass(frozen=True)
class CertifiedCase:
    """A certificate beside the attacks of the same norm and size.

    Attributes:
        condition: Its label.
        method: The method with its parameters.
        threat: Label of the threat model.
        attacks: The attacks of that threat model.
        lines: By the models' labels.
    """

    condition: str
    method: str
    threat: str
    attacks: tuple[str, ...]
    lines: Mapping[str, CertifiedLine]


@dataclass(frozen=True)
class CertifiedCurve:
    """Certified and robust accuracy over the size of the change in a norm.

    Attributes:
        norm: The norm.
        radii: Where both are known, rising; between them, certified accuracy is at least that of the next, robust
            accuracy at most that of the last.
        lines: By the models' labels: accuracy at no change and at each of the radii, certified and under attack.
    """

    norm: str
    radii: tuple[float, ...]
    lines: Mapping[str, tuple[tuple[Rates, ...], tuple[Rates, ...]]]


@dataclass(frozen=True)
class Certificates:
    """What a board says from below."""

    cases: tuple[CertifiedCase, ...]
    curves: tuple[CertifiedCurve, ...]

    @classmethod
    def of(cls, table: Table, threats: Threats) -> Certificates:
        """All certificates of a table, and a curve for each norm with attacks."""
        specs = [spec for spec in table.conditions if spec.certificate]
        norms = dict.fromkeys(spec.certificate.norm for spec in specs if spec.certificate)
        curves = [_curve(table, threats, norm) for norm in norms]
        return cls(tuple(_case(table, threats, spec) for spec in specs), tuple(one for one in curves if one))


def _case(table: Table, threats: Threats, spec: ConditionSpec) -> CertifiedCase:
    proof = spec.certificate
    assert proof is not None
    threat = ThreatModel(proof.norm, proof.eps)
    attacks = threats.get(threat, ())
    images = common_images(table, [spec, *attacks])
    found = {model.label: _line(table, model.label, spec, attacks, images) for model in table.models}
    lines = {label: line for label, line in found.items() if line}
    return CertifiedCase(spec.label, proof.label, threat.label, tuple(one.label for one in attacks), lines)


def _line(
    table: Table, model: str, spec: ConditionSpec, attacks: Sequence[ConditionSpec], images: Images
) -> CertifiedLine | None:
    outcomes, classes = table.outcomes(model, spec.label), table.num_classes
    certified = worst_by_seed(table, model, [spec], images)
    if not outcomes or not certified or not len(images):
        return None
    attacked = worst_by_seed(table, model, attacks, images) if attacks else {}
    clean = _rated([on(accuracy_scores(outcome), images) for outcome in outcomes], classes)
    proved = _rated(list(certified.values()), classes)
    assert clean is not None
    assert proved is not None
    between = [combine([attacked[seed], part], _between) for seed, part in certified.items() if attacked]
    left = {
        one.label: rated.balanced.value
        for one in attacks
        if (rated := _rated(list(worst_by_seed(table, model, [one], images).values()), classes))
    }
    strongest = min(left, key=lambda label: left[label]) if attacked and left else ""
    return CertifiedLine(clean, proved, _rated(list(attacked.values()), classes), _rated(between, classes), strongest)


def _between(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], axis: int) -> object:
    return (values[0] - values[1]).clip(0, 1)


def _rated(by_seed: Sequence[Scores], classes: int) -> Rates | None:
    found = rates(by_seed, classes) if by_seed else None
    return found[0] if found else None


def _curve(table: Table, threats: Threats, norm: str) -> CertifiedCurve | None:
    """The curve of the rows for which any certificate and all attacks of the norm are done, on what all of them have.

    Of each row, every certificate counts that it has, and every attack: those within a ball and those that look for the
    smallest change.
    """
    specs = [spec for spec in table.conditions if spec.certificate and spec.certificate.norm == norm]
    within = {threat.eps: conditions for threat, conditions in threats.items() if threat.norm == norm}
    attacks = [one for conditions in within.values() for one in conditions]
    attacks += [one for one in table.conditions if seeks_smallest(one, norm)]
    if not attacks:
        return None
    parts: dict[str, tuple[list[Scores], list[Scores]]] = {}
    for model in table.models:
        proofs = [found for spec in specs if (found := table.outcomes(model.label, spec.label))]
        tried = [(one, table.outcomes(model.label, one.label)) for one in attacks]
        done = [(one, found) for one, found in tried if found is not None]
        if proofs and len(done) == len(attacks):
            proved = [combine([_radii(one) for one in seed], np.max) for seed in zip(*proofs, strict=True)]
            distances = [[distance_scores(one, norm, spec.stages[0].eps) for one in found] for spec, found in done]
            fooled = [combine(seed, np.min) for seed in zip(*distances, strict=True)]
            parts[model.label] = proved, fooled
    sizes = {spec.certificate.eps for spec in specs if spec.certificate} | set(within)
    radii = tuple(sorted(size for size in sizes if size > 0))
    every = [part.ids for both in parts.values() for scores in both for part in scores]
    images = functools.reduce(np.intersect1d, every) if every else np.zeros(0, dtype=np.int64)
    if not len(images) or not radii:
        return None
    lines = {}
    for label, (proved, fooled) in parts.items():
        known = [on(part, images) for part in fooled]
        clean = [survival(part, 0.0) for part in known]
        reached = [[_reaches(on(part, images), radius) for part in proved] for radius in radii]
        left = [[survival(part, radius) for part in known] for radius in radii]
        both = [tuple(_rated(at, table.num_classes) for at in [clean, *points]) for points in (reached, left)]
        lines[label] = (tuple(one for one in both[0] if one), tuple(one for one in both[1] if one))
    return CertifiedCurve(norm, radii, lines)


def _radii(outcome: Outcome) -> Scores:
    return Scores(outcome.ids, outcome.labels, np.where(outcome.attempted, outcome.radius, 0.0))


def _reaches(radii: Scores, size: float) -> Scores:
    return replace(radii, values=(radii.values >= size).astype(np.float64))
