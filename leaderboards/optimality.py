"""How near minimal-norm attacks come to the smallest distances that any attack found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.evaluation.statistics import wilson
from robbench.leaderboards.aggregates import Estimate, distance_scores, on
from robbench.leaderboards.comparison import common_images
from robbench.leaderboards.curves import seeks_smallest
from robbench.leaderboards.table import Table
from robbench.results.schema import Bools, ConditionSpec, Floats, Ints, Measure, Outcome

ENVELOPE = "best known"
"""What the per-image minimum over all attacks is called among them."""


@dataclass(frozen=True)
class Reach:
    """What an attack, or the best of all of them, reached on the images of one model that are correct clean.

    Attributes:
        success: Share of the images that fooled the model.
        median: Median distance, infinite where the attack failed; None where the median is.
        optimality: Local optimality; None where it is not defined.
        forwards: Forward passes per image, mean over images and seeds; None of the best known.
        backwards: Backward passes, likewise.
    """

    success: Estimate
    median: Estimate | None
    optimality: Estimate | None
    forwards: float | None
    backwards: float | None


@dataclass(frozen=True)
class NormComparison:
    """The minimal-norm attacks of one norm, on the images that all of them were run on.

    Attributes:
        norm: In which distances are measured.
        conditions: Labels of the attacks.
        known: Labels of all conditions whose distances count for the best known: attacks within a ball too.
        n: Number of images, those that are misclassified clean among them.
        lines: By the models' labels what each attack reached, and the best known.
    """

    norm: str
    conditions: tuple[str, ...]
    known: tuple[str, ...]
    n: int
    lines: Mapping[str, Mapping[str, Reach]]


@dataclass(frozen=True)
class NormAttacks:
    """What there is to compare in one norm.

    Attributes:
        norm: The norm.
        seeking: Untargeted attacks that look for the smallest change.
        bounded: Ranking attacks within a ball of the norm.
        images: Those that all rows have under all that seek.
    """

    norm: str
    seeking: tuple[ConditionSpec, ...]
    bounded: tuple[ConditionSpec, ...]
    images: Ints

    @classmethod
    def of(cls, table: Table) -> list[NormAttacks]:
        """One for each norm in which two attacks or more look for the smallest change."""
        found = []
        for norm in dict.fromkeys(stage.norm for spec in table.conditions for stage in spec.stages):
            seeking = tuple(spec for spec in table.conditions if seeks_smallest(spec, norm))
            if len(seeking) > 1:
                threats = table.threats().items()
                bounded = tuple(spec for threat, specs in threats if threat.norm == norm for spec in specs)
                found.append(cls(norm, seeking, bounded, common_images(table, seeking)))
        return found

    def distances(self, table: Table, model: str) -> dict[str, list[Floats]]:
        """Distances of the images by attack and seed, the best known last.

        0 where the clean prediction is wrong, infinite where the attack failed; an attack within a ball counts for the
        best known on those of the images that it was run on.

        Returns:
            Nothing unless the row has all that seek on all images.
        """
        found = {spec.label: self._of(table, model, spec) for spec in self.seeking}
        if not len(self.images) or any(not parts or np.isnan(parts).any() for parts in found.values()):
            return {}
        every = [*found.values(), *(parts for spec in self.bounded if (parts := self._of(table, model, spec)))]
        return found | {ENVELOPE: [np.fmin.reduce(parts) for parts in zip(*every, strict=True)]}

    def _of(self, table: Table, model: str, spec: ConditionSpec) -> list[Floats]:
        """By seed; NaN where the condition was not run on an image."""
        made = []
        for outcome in table.outcomes(model, spec.label) or ():
            known = on(distance_scores(outcome, self.norm, spec.stages[0].eps), self.images)
            part = np.full(len(self.images), np.nan)
            part[np.searchsorted(self.images, known.ids)] = known.values
            made.append(part)
        return made


def compared_norms(table: Table) -> tuple[NormComparison, ...]:
    """The comparisons of a board."""
    made = []
    for attacks in NormAttacks.of(table):
        lines = {model.label: _reached(table, model.label, attacks) for model in table.models}
        labels, others = (tuple(spec.label for spec in specs) for specs in (attacks.seeking, attacks.bounded))
        reached = {model: line for model, line in lines.items() if line}
        if reached:
            made.append(NormComparison(attacks.norm, labels, (*labels, *others), len(attacks.images), reached))
    return tuple(made)


def local_optimality(distances: Floats, best: Floats) -> float | None:
    """Local optimality of an attack on one model (Cinà et al., "AttackBench", AAAI 2025).

    The area between clean accuracy and the attack's curve of robust accuracy over distance, as a share of that of the
    best known distances, both up to eps_0, the largest of these: 1 where the attack finds the best known distance of
    every image, 0 where it fools none within eps_0. Curves are integrated as the step functions that they are, while
    AttackBench's code joins their points by lines. Images that no attack fools lie beyond eps_0.

    Args:
        distances: The attack's, 0 where the clean prediction is wrong, infinite where it failed.
        best: The best known of the same images, none larger.

    Returns:
        None where the best known distances leave no area: where none of them lies below eps_0.
    """
    correct = best > 0
    largest = best[np.isfinite(best)].max(initial=0.0)
    own, whole = (np.maximum(largest - values[correct], 0).sum() for values in (distances, best))
    return float(own / whole) if whole > 0 else None


def _reached(table: Table, model: str, attacks: NormAttacks) -> dict[str, Reach]:
    """By attack, the best known last; nothing where no image is correct clean."""
    found = attacks.distances(table, model)
    best = found.get(ENVELOPE, [])
    if not any((part > 0).any() for part in best):
        return {}
    return {
        label: _reach(by_seed, best, table.outcomes(model, label) or (), attacks.images)
        for label, by_seed in found.items()
    }


def _reach(by_seed: Sequence[Floats], best: Sequence[Floats], outcomes: Sequence[Outcome], images: Ints) -> Reach:
    attacked = [own[known > 0] for own, known in zip(by_seed, best, strict=True)]
    hits = [wilson(int(np.isfinite(part).sum()), len(part)) for part in attacked]
    medians = [Measure(float(np.median(part)), n=len(part)) for part in attacked if len(part)]
    shares = [local_optimality(own, known) for own, known in zip(by_seed, best, strict=True)]
    areas = [Measure(share, n=len(part)) for share, part in zip(shares, attacked, strict=True) if share is not None]
    spent = [_mean([getattr(one, name)[_kept(one, images)] for one in outcomes]) for name in ("forwards", "backwards")]
    return Reach(
        success=Estimate.mean(hits, is_rate=True),
        median=Estimate.mean(medians) if all(np.isfinite(part.value) for part in medians) else None,
        optimality=Estimate.mean(areas) if len(areas) == len(shares) else None,
        forwards=spent[0],
        backwards=spent[1],
    )


def _kept(outcome: Outcome, images: Ints) -> Bools:
    attacked: Bools = outcome.attempted & np.isin(outcome.ids, images)
    return attacked


def _mean(parts: Sequence[Floats]) -> float | None:
    found = np.concatenate([*parts, np.zeros(0)])
    return float(found.mean()) if len(found) else None
