"""Intervals, comparisons and tie groups. Pure functions of their arguments, in closed form: nothing is drawn.

The same on every processor: sums are correctly rounded (``math.fsum``) or in a fixed order (``np.bincount``), and no
matrix product of floats is taken, whose order of addition the linear algebra library chooses by processor and thread
count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import variance
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from robbench.results.schema import Floats, Ints, Measure

LEVEL = 0.95
SEEDS = 3
"""So many training seeds make a comparison one of methods; of fewer it is one of these checkpoints."""

_TAIL = (1 - LEVEL) / 2
_Z = -float(ndtri(_TAIL))
_DIGITS = 12
"""To so many decimals differences are rounded, so that equal ones are."""


@dataclass(frozen=True)
class Scores:
    """One value per sample.

    Attributes:
        ids: Sample ids, none twice, shape ``(N,)``.
        labels: True classes, shape ``(N,)``.
        values: Mostly numbers in [0, 1], for instance whether the sample is right, or the share of seeds for which it
            is; or distances, shape ``(N,)``.
    """

    ids: Ints
    labels: Ints
    values: Floats

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ids)


def combine(parts: Sequence[Scores], reduce: Callable[..., Any]) -> Scores:
    """One value per sample from several, on the samples that all parts have, in rising order of their ids.

    Args:
        parts: At least one.
        reduce: ``np.mean``, ``np.min`` or another reduction that takes ``axis``.
    """
    ids, labels, values = _aligned(parts)
    return Scores(ids, labels, reduce(values, axis=0))


def _aligned(parts: Sequence[Scores]) -> tuple[Ints, Ints, Floats]:
    """The ids that all parts have, rising; labels of shape ``(N,)``; values of shape ``(parts, N)``."""
    ids = np.sort(parts[0].ids)
    for part in parts[1:]:
        if not np.array_equal(ids, part.ids):
            ids = np.intersect1d(ids, part.ids)
    places = [np.arange(len(ids)) if np.array_equal(ids, part.ids) else _places(part.ids, ids) for part in parts]
    values = np.stack([part.values[place] for part, place in zip(parts, places, strict=True)])
    return ids, parts[0].labels[places[0]], values


def _places(ids: Ints, wanted: Ints) -> NDArray[np.intp]:
    order = np.argsort(ids)
    return order[np.searchsorted(ids, wanted, sorter=order)]


# --------------------------------------------------------------------------------------------------------------- curves


def survival(distances: Scores, radius: float) -> Scores:
    """Whether each sample is robust to changes of at most ``radius``: 1 where its distance is larger, else 0.

    A change that succeeds within a radius is there within any larger one, so over rising radii the mean never rises.

    Args:
        distances: The smallest change that is known to succeed, 0 where none is needed, infinite where none is known.
        radius: Of a ball around the sample.
    """
    return replace(distances, values=(distances.values > radius).astype(np.float64))


def covered(distances: Scores, largest: float) -> Scores:
    """The share of the radii in [0, largest] that each sample is robust to, ``min(d, largest) / largest``.

    Its mean is the area under the curve of ``survival`` over [0, largest], divided by ``largest``.

    Args:
        distances: As for ``survival``.
        largest: Where the curve ends, above 0.
    """
    return replace(distances, values=np.minimum(distances.values, largest) / largest)


# ------------------------------------------------------------------------------------------------------------ intervals


def wilson(successes: float, n: int, dispersion: float = 1.0) -> Measure:
    """A rate with its 95 % score interval (Wilson, "Probable inference", JASA 22, 1927, 209–212).

    It covers 95 % on average over rates. At a single rate near 0 or 1, where few counts are likely, the coverage of any
    interval jumps (Brown, Cai and DasGupta, Statistical Science 16, 2001, 101-133): of this one, from 89 to 100 %.

    Args:
        successes: A count, or a sum of values in [0, 1].
        n: Number of samples. Of none, the rate is 0 and its interval all of [0, 1].
        dispersion: Of the values: see ``dispersion``. Left at 1, the interval of a sum of other values than 0 and 1 is
            wider than it need be.
    """
    if n == 0:
        return Measure(0.0, 0.0, 1.0, 0)
    rate = min(max(successes / n, 0.0), 1.0)
    spread = _Z**2 * dispersion / n
    center = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * rate * (1 - rate) + spread**2 / 4) / (1 + spread)
    return Measure(rate, max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half)), n)


def dispersion(values: NDArray[Any], labels: Ints) -> float:
    """The variance of values in [0, 1] within classes, relative to that of zeros and ones of the same means.

    1 for zeros and ones. What is less makes the effective number of samples larger: areas under curves, and means over
    seeds or draws, vary less than counts do. Two unseen samples, a zero and a one, keep few values that happen to be
    equal from seeming certain. Means as near to 0 or 1 as rounding errors count as zeros and ones do.
    """
    strata = _Strata.of(labels)
    sums = strata.sums(values)
    mean = math.fsum(sums) / max(1, len(values))
    most = math.fsum(sums * (1 - sums / strata.counts)) + 2 * mean * (1 - mean)
    return 1 - math.fsum(strata.sums(values * (1.0 - values))) / most if most > 1e-9 else 1.0


def mean_rate(values: NDArray[Any]) -> Measure:
    """The mean of values in [0, 1], with Wilson's interval at their effective number."""
    (rate,) = class_rates(values, np.zeros(len(values), dtype=np.int64), 1)
    return rate


def class_rates(values: NDArray[Any], labels: Ints, num_classes: int) -> list[Measure]:
    """The mean of each class's values in [0, 1], with Wilson intervals; classes without samples have ``n`` 0."""
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=values, minlength=num_classes)
    shrunk = dispersion(values, labels)
    return [wilson(float(total), int(n), shrunk) for total, n in zip(sums, counts, strict=True)]


def balanced(rates: Sequence[Measure], dispersion: float = 1.0) -> Measure:
    """The mean over the classes that have samples.

    Its 95 % interval is that of a score test, as Wilson's is. A candidate above the mean is tested with the variance
    that the mean has if all classes' error rates are smaller in proportion; one below it, if all rates are. So it is
    Wilson's interval at the effective number of samples, which depends on the candidate. With one class, that is their
    number; where all samples are right or all wrong, that of classes of equal rates.

    Args:
        rates: The classes' own; their values and numbers of samples count.
        dispersion: Of the values that they are means of: see ``dispersion``.
    """
    seen = [rate for rate in rates if rate.n]
    if not seen:
        return Measure(0.0, 0.0, 1.0, 0)
    mean = math.fsum(rate.value for rate in seen) / len(seen)
    sizes = [rate.n / dispersion for rate in seen]
    low = 1 - _upper_end([1 - rate.value for rate in seen], sizes)
    high = _upper_end([rate.value for rate in seen], sizes)
    return Measure(mean, max(0.0, min(mean, low)), min(1.0, max(mean, high)), sum(rate.n for rate in seen))


def _upper_end(rates: Sequence[float], sizes: Sequence[float]) -> float:
    """The largest mean that a score test at 2.5 % does not reject.

    With error rates ``e``, the mean 1 − t·ē has the variance ``t·first − t²·second``, and the test just rejects where
    ``(1 − t)²ē² = z²(t·first − t²·second)``.
    """
    count = len(rates)
    errors = [1 - rate for rate in rates]
    error = math.fsum(errors) / count
    if error <= 0:
        return 1.0
    # The square of a class's observed error rate is too large by the variance of that rate, most where samples are few.
    # What the class itself cannot tell of that variance, all classes together do.
    bias = (1 - 1 / count) * (1 - error)
    first = math.fsum(one / size for one, size in zip(errors, sizes, strict=True)) / count**2
    second = math.fsum(one * (one - bias / size) / size for one, size in zip(errors, sizes, strict=True)) / count**2
    root = math.sqrt(_Z**2 * first**2 + 4 * error**2 * (first - second))
    return 1 - 2 * error**3 / (2 * error**2 + _Z**2 * first + _Z * root)


# ---------------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Difference:
    """By how much the balanced mean of one row exceeds that of another.

    Attributes:
        added: The difference in [-1, 1], with its 95 % interval and number of samples.
        p: Two-sided, of the same test: below 0.05 exactly where the interval excludes 0.
        by_seed: The difference seed by seed.
    """

    added: Measure
    p: float
    by_seed: tuple[float, ...]


def compare(first: Sequence[Scores], second: Sequence[Scores]) -> Difference | None:
    """By how much the second row exceeds the first, on the samples that all of their seeds have.

    Of fewer than ``SEEDS`` seeds this tells of these checkpoints: samples are taken to be drawn, within each class, and
    each counts by its mean difference over the seeds. The interval is Bonett and Price's ("Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", Journal of Educational and Behavioral
    Statistics 37, 2012, 479-488), stratified: two unseen samples, one in favor of each row, are shared by the classes,
    and what a class of few samples cannot tell of its variance, all classes together do. As in a sign test, fewer than
    six samples that differ tell nothing: p is at least 2^(1 − m) for m of them.

    Of more seeds it tells of methods: trainings are taken to be drawn as well. The variance between seeds is known from
    few of them, so the quantile lies between the normal and Student's one, the square by the inverse of Satterthwaite's
    degrees of freedom (Biometrics Bulletin 2, 1946, 110-114); at Student's own of those degrees, three seeds err up to
    7.7 % of the time. The interval is never narrower than that of these checkpoints, so it covers up to 99 % where
    seeds vary by nothing but their images. A test of 5 % whatever seeds vary by could only be Student's (Lehmann and
    Romano, "Testing Statistical Hypotheses", section 4.3), which is surer than that whenever a few seeds agree.

    Args:
        first: The scores of one row, seed by seed.
        second: Those of the other, of the same seeds.

    Returns:
        The comparison, or None where no sample is common to all.
    """
    ids, labels, values = _aligned([*first, *second])
    if len(ids) == 0:
        return None
    differences = np.round(values[len(first) :] - values[: len(first)], _DIGITS)
    strata = _Strata.of(labels)
    by_seed = tuple(map(strata.mean, differences))
    means = np.round(differences.mean(axis=0), _DIGITS)
    center, images = strata.adjusted(means)
    error = _Error(images)
    if len(by_seed) >= SEEDS:
        # How an image's differences vary from seed to seed is in the variance between seeds already.
        single = strata.mean_variance(differences.var(axis=0, ddof=1)) / len(by_seed)
        error = _Error(images, variance(by_seed) / len(by_seed), max(0.0, images - single), len(by_seed) - 1)
    value, half = math.fsum(by_seed) / len(by_seed), error.half(1 - LEVEL)
    p = max(error.p(abs(center)), min(1.0, 2.0 ** (1 - int(np.count_nonzero(means)))))
    ends = [value, center - half, center + half, *([0.0] if p >= 1 - LEVEL else [])]
    return Difference(Measure(value, max(-1.0, min(ends)), min(1.0, max(ends)), len(ids)), p, by_seed)


def balanced_mean(row: Scores) -> float:
    """The mean of the classes' means."""
    return _Strata.of(row.labels).mean(row.values)


@dataclass(frozen=True)
class _Strata:
    """Samples by class: for each the place of its class, and for each class the number of samples."""

    places: Ints
    counts: Floats

    @classmethod
    def of(cls, labels: Ints) -> _Strata:
        _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(places, counts.astype(np.float64))

    def sums(self, values: Floats) -> Floats:
        return np.bincount(self.places, weights=values).astype(np.float64)

    def mean(self, values: Floats) -> float:
        return math.fsum(self.sums(values) / self.counts) / len(self.counts)

    def mean_variance(self, variances: Floats) -> float:
        """The variance of the balanced mean, from those of single samples."""
        return math.fsum(self.sums(variances) / self.counts**2) / len(self.counts) ** 2

    def adjusted(self, differences: Floats) -> tuple[float, float]:
        """The balanced mean with two unseen samples, and its variance: see ``compare``."""
        classes = len(self.counts)
        unseen = 1 / classes
        counts = self.counts + 2 * unseen
        centers = self.sums(differences) / counts
        squares = self.sums((differences - centers[self.places]) ** 2) + 2 * unseen * (1 + centers**2)
        squares += (1 - 1 / classes) * self.mean((differences - self.mean(differences)) ** 2)
        return math.fsum(centers) / classes, math.fsum(squares / counts**2) / classes**2


@dataclass(frozen=True)
class _Error:
    """Variances of a difference.

    Attributes:
        images: For these checkpoints.
        seeds: For methods, that between seeds.
        beside: For methods, that of images which the one between seeds does not hold.
        freedom: Degrees of freedom of the variance between seeds; 0 for these checkpoints.
    """

    images: float
    seeds: float = 0.0
    beside: float = 0.0
    freedom: int = 0

    def half(self, tail: float) -> float:
        """Half the width of the interval that errs with a chance of ``tail``."""
        normal = float(ndtri(tail / 2)) ** 2
        student = float(stdtrit(self.freedom, tail / 2)) ** 2 if self.freedom else 0.0
        known = self.seeds + self.beside
        both = normal * known + (student - normal) * self.seeds**2 / known if known else 0.0
        return math.sqrt(max(normal * self.images, both))

    def p(self, distance: float) -> float:
        """The ``tail`` of the interval whose half width is the distance."""
        low, high = math.erfc(distance / math.sqrt(2 * self.images)), 1.0
        for _ in range(60 if self.freedom else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if self.half(middle) > distance else (low, middle)
        return low


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests (Holm, Scandinavian Journal of Statistics 6, 1979, 65–70)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def tie_leaders(rows: Sequence[Scores]) -> list[int]:
    """For each row, the position of the first row of its tie group.

    Every two rows are compared, Holm over all pairs: the data have chosen which row comes first, and a correction over
    the rows below it alone tells equal rows apart far too often. The first row leads a group. The rows directly after
    it that are not told apart from it belong to its group; the first that is told apart leads the next, even if a row
    further down is not: so groups are runs of neighbors, and a group's rows are all tied with its leader, not
    necessarily with one another. Rows without a common sample cannot be compared, and are not tied.

    Args:
        rows: The rows from best to worst.
    """
    found = {pair: compare([rows[pair[0]]], [rows[pair[1]]]) for pair in combinations(range(len(rows)), 2)}
    known = {pair: comparison.p for pair, comparison in found.items() if comparison}
    tied = {pair for pair, p in zip(known, holm(list(known.values())), strict=True) if p >= 1 - LEVEL}
    leaders: list[int] = []
    for row in range(len(rows)):
        leaders.append(leaders[-1] if leaders and (leaders[-1], row) in tied else row)
    return leaders
