"""Shares of samples over the seeds of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robbench.evaluation.statistics import Scores, balanced, class_rates, combine, dispersion, mean_rate, wilson
from robbench.evaluation.verdicts import distances, judged
from robbench.evaluation.worst_class import worst_class
from robbench.results.schema import Floats, Ints, Measure, Outcome


@dataclass(frozen=True)
class Estimate:
    """A number over the seeds of a row.

    Attributes:
        value: Mean over seeds.
        low: Lower end of the 95 % interval over samples, or None where none is defined.
        high: Upper end.
        n: Number of samples.
        seeds: The figure of each seed, in the order of the row's seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: tuple[float, ...] = ()

    @classmethod
    def of(cls, measure: Measure, seeds: Sequence[float]) -> Estimate:
        """A measure over all seeds, with what each of them gives."""
        return cls(measure.value, measure.low, measure.high, measure.n, tuple(float(value) for value in seeds))

    @classmethod
    def mean(cls, parts: Sequence[Measure], is_rate: bool = False) -> Estimate:
        """The mean of the figures of some seeds; with an interval if it is a rate of samples."""
        values = [part.value for part in parts]
        mean, n = float(np.mean(values)), min(part.n for part in parts)
        return cls.of(wilson(mean * n, n) if is_rate else Measure(mean, n=n), values)


def against_constant(figure: Estimate, classes: int) -> Literal["below", "like", "above"]:
    """How a balanced figure compares with that of one prediction for every image, which is right for one class.

    It is like it where its interval holds the constant's figure.

    Args:
        figure: With its interval; a figure without one is taken at its word.
        classes: Their number.
    """
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    return "below" if high < 1 / classes else "above" if low > 1 / classes else "like"


@dataclass(frozen=True)
class Rates:
    """A share of samples: over all, averaged over classes, of the worst class, and per class (None without samples)."""

    share: Estimate
    balanced: Estimate
    worst_class: Estimate
    per_class: tuple[Estimate | None, ...]


def scores(outcome: Outcome) -> Scores:
    """Per judged sample, whether it counts as right under the condition."""
    return _judged(outcome, outcome.robust.astype(np.float64))


def accuracy_scores(outcome: Outcome) -> Scores:
    """Per judged sample, whether it is right after the condition, whatever it was before."""
    return _judged(outcome, (outcome.final == outcome.labels).astype(np.float64))


def distance_scores(outcome: Outcome, norm: str, eps: float | None) -> Scores:
    """Per judged sample, the smallest change that is known to succeed: see ``verdicts.distances``."""
    return _judged(outcome, distances(outcome, norm, eps))


def on(found: Scores, images: Ints) -> Scores:
    """The values of some images alone, by their ids."""
    kept = np.isin(found.ids, images)
    return Scores(found.ids[kept], found.labels[kept], found.values[kept])


def _judged(outcome: Outcome, values: Floats) -> Scores:
    kept = judged(outcome)
    return Scores(outcome.ids[kept], outcome.labels[kept], values[kept])


def rates(by_seed: Sequence[Scores], num_classes: int) -> tuple[Rates, Scores] | None:
    """The rates of some seeds, and each sample's mean over them, on the samples that all have; None without any."""
    mean = combine(by_seed, np.mean)
    if not len(mean):
        return None
    seeds = [combine((part, mean), lambda values, axis: values[0]) for part in by_seed]
    per_seed = [class_rates(part.values, part.labels, num_classes) for part in seeds]
    found, less = class_rates(mean.values, mean.labels, num_classes), dispersion(mean.values, mean.labels)
    return Rates(
        share=Estimate.of(mean_rate(mean.values), [part.values.mean() for part in seeds]),
        balanced=Estimate.of(balanced(found, less), [balanced(part).value for part in per_seed]),
        worst_class=Estimate.of(
            worst_class(found, less), [min(rate.value for rate in part if rate.n) for part in per_seed]
        ),
        per_class=tuple(
            Estimate.of(rate, [part[label].value for part in per_seed]) if rate.n else None
            for label, rate in enumerate(found)
        ),
    ), mean
