"""What stands in one table: the same images throughout, and the same attacks at every size of change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np

from robbench.evaluation.statistics import Scores, combine
from robbench.leaderboards.aggregates import Rates, on, rates, scores
from robbench.leaderboards.table import Table, Threats
from robbench.results.schema import ConditionSpec, Ints, digest

_SIZED = {"eps", "norm", "label"}

Images: TypeAlias = Ints
"""Ids of test images, rising."""


@dataclass(frozen=True)
class ComparableCases:
    """Worst cases that can be compared.

    Attributes:
        attacks: The attacks at each size, without their sizes; none where nothing is attacked.
        threats: Labels of the threat models, in order; the one that ranks comes first.
        n: Number of images.
    """

    attacks: tuple[str, ...]
    threats: tuple[str, ...]
    n: int


def attack_identity(condition: ConditionSpec) -> str:
    """Identifies what is run, whatever its norm and size."""
    stages = [stage.model_dump(mode="json", exclude=_SIZED) for stage in condition.stages]
    return digest([stages, condition.target])


def attack_name(condition: ConditionSpec) -> str:
    """A single attack without its size, as ``pgd[steps=20]`` or ``pgd->all``."""
    name = "+".join(stage.label for stage in condition.stages)
    return f"{name}->{condition.target}" if condition.target else name


def common_images(table: Table, conditions: Sequence[ConditionSpec]) -> Images:
    """The images that all rows have under all of some conditions.

    A row without any is not compared; nor is one that would leave none, as it was run on other images altogether: the
    rows with the most images have precedence.

    Args:
        table: The cells.
        conditions: Those that are compared.
    """
    every = [_covered(table, model.label, conditions) for model in table.models]
    covers = [found for found in every if found is not None and len(found)]
    covers.sort(key=len, reverse=True)
    images: Images = covers[0] if covers else np.zeros(0, dtype=np.int64)
    for other in covers[1:]:
        shared = np.intersect1d(images, other)
        images = shared if len(shared) else images
    return images


def worst_by_seed(
    table: Table, model: str, conditions: Sequence[ConditionSpec], images: Images | None
) -> dict[int, Scores]:
    """The worst case over some conditions on some images, by seed; nothing unless all are done on all of the images.

    Args:
        table: The cells.
        model: The row's label.
        conditions: The conditions.
        images: The images; all that the conditions have where it is None.
    """
    found = _by_seed(table, model, conditions)
    if images is None:
        return found
    kept = {seed: on(part, images) for seed, part in found.items()}
    return kept if all(len(part) == len(images) for part in kept.values()) else {}


def rated(
    table: Table, model: str, conditions: Sequence[ConditionSpec], images: Images | None
) -> tuple[Rates, Scores] | None:
    """The rates of a row's worst case over some conditions, and each sample's mean over seeds; None without any."""
    by_seed = worst_by_seed(table, model, conditions, images)
    return rates(list(by_seed.values()), table.num_classes) if by_seed else None


def _by_seed(table: Table, model: str, conditions: Sequence[ConditionSpec]) -> dict[int, Scores]:
    found = [table.outcomes(model, condition.label) for condition in conditions]
    done = [outcomes for outcomes in found if outcomes is not None]
    if not done or len(done) < len(found):
        return {}
    worst = [combine([scores(part) for part in parts], np.min) for parts in zip(*done, strict=True)]
    return dict(zip(table.seeds[model], worst, strict=True))


def _covered(table: Table, model: str, conditions: Sequence[ConditionSpec]) -> Images | None:
    by_seed = _by_seed(table, model, conditions)
    return combine(list(by_seed.values()), np.min).ids if by_seed else None


def comparable(
    table: Table, threats: Threats, natural: Sequence[ConditionSpec], by_clean: bool = False
) -> list[tuple[ComparableCases, Images]]:
    """The comparisons of a board with their images, the one that ranks first.

    A threat model joins the first comparison of the same attacks whose images all its rows have. Clean and perturbed
    accuracy have one of their own, the last, where they are on more images than all others; clean accuracy alone where
    that is only so of it. Where clean accuracy ranks, the comparison on all its images comes first.

    Args:
        table: The cells.
        threats: The conditions by threat model, the one that ranks first.
        natural: The conditions without an adversary that are shown beside worst cases, clean images first.
        by_clean: Whether clean accuracy ranks.
    """
    found: list[tuple[frozenset[str], ComparableCases, Images]] = []
    for threat, conditions in threats.items():
        attacks, own = frozenset(map(attack_identity, conditions)), common_images(table, conditions)
        for at, (others, comparison, images) in enumerate(found):
            if others == attacks and len(images) and np.isin(images, own).all():
                joined = ComparableCases(comparison.attacks, (*comparison.threats, threat.label), comparison.n)
                found[at] = (others, joined, images)
                break
        else:
            names = tuple(dict.fromkeys(map(attack_name, conditions)))
            found.append((attacks, ComparableCases(names, (threat.label,), len(own)), own))
    made = [(comparison, images) for _, comparison, images in found]
    if by_clean:
        every = common_images(table, natural[:1])
        attacked = sorted(made, key=lambda item: not np.array_equal(item[1], every))
        shared = any(np.array_equal(images, every) for _, images in attacked)
        return attacked if shared else [(ComparableCases((), (), len(every)), every), *attacked]
    largest = max((comparison.n for comparison, _ in made), default=0)
    candidates = (common_images(table, chosen) for chosen in (natural, natural[:1]) if chosen)
    alone = next((images for images in candidates if len(images) > largest), None)
    return made if alone is None else [*made, (ComparableCases((), (), len(alone)), alone)]


def by_images(images: Mapping[str, Images]) -> tuple[tuple[str, ...], ...]:
    """Labels of conditions, those together that were run on the same images."""
    groups: dict[bytes, list[str]] = {}
    for label, found in images.items():
        groups.setdefault(found.tobytes(), []).append(label)
    return tuple(map(tuple, groups.values()))


def shown_perturbation(table: Table) -> str | None:
    """The natural perturbation to show first: the one of that name, or else the one that costs the rows most."""
    means = {}
    for condition in table.conditions:
        if condition.kind == "natural" and [stage.name for stage in condition.stages] == ["perturbation"]:
            return condition.label
        found = [rated(table, model.label, [condition], None) for model in table.models]
        done = [one[0].balanced.value for one in found if one]
        if condition.kind == "natural" and done:
            means[condition.label] = fmean(done)
    return min(means, key=lambda label: means[label]) if means else None
