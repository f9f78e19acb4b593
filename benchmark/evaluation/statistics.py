"""Intervals, comparisons and tie groups. Pure functions of their arguments: random draws are seeded from the data.

The same on every processor: sums are of integers, correctly rounded (``math.fsum``) or in a fixed order, and no matrix
product of floats is taken, whose order of addition the linear algebra library chooses by processor and thread count.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robbench.results.schema import Floats, Ints, Measure

LEVEL = 0.95
RESAMPLES = 10_000

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_UNIT = 10**12
"""Differences are counted in units of one over this, so that their sums are exact; what is closer together is equal."""

DifferenceCounts: TypeAlias = tuple[Ints, NDArray[Any]]
"""Differences, as whole numbers of units, and how often each occurs."""

_UNSEEN: DifferenceCounts = (np.array([-_UNIT, 0, _UNIT]), np.array([0.5, 1.0, 0.5]))
"""Two pairs of samples, half of one in each cell of right and wrong."""


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
    ids = functools.reduce(np.intersect1d, [part.ids for part in parts])
    places = [_places(part.ids, ids) for part in parts]
    values = np.stack([part.values[place] for part, place in zip(parts, places, strict=True)])
    return Scores(ids, parts[0].labels[places[0]], reduce(values, axis=0))


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


def wilson(successes: float, n: int) -> Measure:
    """A rate with its 95 % score interval (Wilson, "Probable inference", JASA 22, 1927, 209–212).

    Args:
        successes: A count; or a sum of values in [0, 1], whose variance is at most that of a count of the same mean, so
            that the interval is then wider than it need be.
        n: Number of samples. Of none, the rate is 0 and its interval all of [0, 1].
    """
    if n == 0:
        return Measure(0.0, 0.0, 1.0, 0)
    rate = min(max(successes / n, 0.0), 1.0)
    spread = _Z**2 / n
    center = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * rate * (1 - rate) + spread**2 / 4) / (1 + spread)
    return Measure(rate, max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half)), n)


def class_rates(values: NDArray[Any], labels: Ints, num_classes: int) -> list[Measure]:
    """The mean of each class's values in [0, 1], with Wilson intervals; classes without samples have ``n`` 0."""
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=values, minlength=num_classes)
    return [wilson(float(total), int(n)) for total, n in zip(sums, counts, strict=True)]


def balanced(rates: Sequence[Measure]) -> Measure:
    """The mean over the classes that have samples.

    Its interval is put together from the classes' own by the method of variance estimates recovery (Zou and Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008, 1693–1702): distances
    from estimate to limit are squared, weighted and summed like variances, below and above apart. With one class it is
    that class's interval.
    """
    seen = [rate for rate in rates if rate.n]
    if not seen:
        return Measure(0.0, 0.0, 1.0, 0)
    mean = math.fsum(rate.value for rate in seen) / len(seen)
    below = math.hypot(*(rate.value - (0.0 if rate.low is None else rate.low) for rate in seen)) / len(seen)
    above = math.hypot(*((1.0 if rate.high is None else rate.high) - rate.value for rate in seen)) / len(seen)
    return Measure(mean, max(0.0, mean - below), min(1.0, mean + above), sum(rate.n for rate in seen))


def worst_class(rates: Sequence[Measure]) -> Measure:
    """The lowest of the class rates, with the lowest of their lower ends and the lowest of their upper ends.

    The lower end is never above that of whichever class is truly worst. ``n`` is the worst class's own.
    """
    seen = [rate for rate in rates if rate.n]
    if not seen:
        return Measure(0.0, 0.0, 1.0, 0)
    worst = min(seen, key=lambda rate: rate.value)
    lows = [rate.low for rate in seen if rate.low is not None]
    highs = [rate.high for rate in seen if rate.high is not None]
    return Measure(worst.value, min(lows, default=None), min(highs, default=None), worst.n)


# ---------------------------------------------------------------------------------------------------------- comparisons


def paired_p(first: Scores, second: Scores) -> float | None:
    """Whether two rows differ in their balanced mean, on the samples that both have.

    A paired bootstrap, stratified by class (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section
    16.4): differences are drawn again within each class, and the observed difference of balanced means is compared with
    how far the drawn ones scatter around it. Samples of equal difference are alike, so each class's draws are one
    multinomial. A bootstrap cannot draw what it has not seen, and would be sure of a single sample; so p is at least
    2^(1 − m) for m samples that differ, the smallest that an exact sign test can give.

    Returns:
        The two-sided p value, or None where no sample is common to both.
    """
    ids, left, right = np.intersect1d(first.ids, second.ids, return_indices=True)
    if len(ids) == 0:
        return None
    tables = _tables(first.values[left] - second.values[right], first.labels[left])
    differing = sum(int(counts[units != 0].sum()) for units, counts in tables)
    if differing == 0:
        return 1.0
    observed = _observed(tables)
    beyond = 0 if _is_hopeless(tables, observed) else _draws_beyond(tables, observed)
    return max((1 + beyond) / (1 + RESAMPLES), min(1.0, 2.0 ** (1 - differing)))


def paired_difference(first: Scores, second: Scores) -> Measure | None:
    """By how much the second row's balanced mean exceeds the first's, on the samples that both have.

    The 95 % interval is the basic bootstrap's (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    equation 5.6), stratified by class. A bootstrap cannot draw what it has not seen, and would be sure of a class of
    eight samples none of which differs; so the classes are drawn from as if they shared two more pairs of samples, half
    of one in each cell of right and wrong (Agresti and Min, Statistics in Medicine 24, 2005, 729-740).

    Returns:
        The difference in [-1, 1] with its interval and number of samples, or None where no sample is common to both.
    """
    ids, left, right = np.intersect1d(first.ids, second.ids, return_indices=True)
    if len(ids) == 0:
        return None
    tables = _tables(second.values[right] - first.values[left], first.labels[left])
    observed = _observed(tables)
    low, high = np.quantile(_scatter(tables, pseudo=_UNSEEN), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measure(observed, max(-1.0, observed - float(high)), min(1.0, observed - float(low)), len(ids))


def mean_difference(first: Scores, second: Scores) -> float | None:
    """``paired_difference`` without its interval."""
    ids, left, right = np.intersect1d(first.ids, second.ids, return_indices=True)
    return _observed(_tables(second.values[right] - first.values[left], first.labels[left])) if len(ids) else None


def _tables(differences: Floats, labels: Ints) -> list[DifferenceCounts]:
    """How often each difference occurs, by class: samples of equal difference are alike."""
    units = np.rint(differences * _UNIT).astype(np.int64)
    return [np.unique(units[labels == label], return_counts=True) for label in np.unique(labels)]


def _mean(table: DifferenceCounts) -> float:
    """The mean difference, in units."""
    units, counts = table
    return int(units @ counts) / int(counts.sum())


def _observed(tables: Sequence[DifferenceCounts]) -> float:
    return math.fsum(_mean(table) for table in tables) / len(tables) / _UNIT


def _scatter(tables: Sequence[DifferenceCounts], pseudo: DifferenceCounts | None = None) -> Floats:
    """How far balanced means of samples that are drawn again within each class lie from where they center.

    Args:
        tables: Differences and their counts, by class.
        pseudo: The same of samples that the classes share, and are drawn from as well.
    """
    rng = np.random.default_rng(_seed(tables))
    scatter = np.zeros(RESAMPLES)
    for units, counts in tables:
        n = int(counts.sum())
        center, weights = _mean((units, counts)), counts
        if pseudo:
            # They center at zero.
            center *= n / (n + float(pseudo[1].sum()) / len(tables))
            units, weights = np.r_[units, pseudo[0]], np.r_[counts, pseudo[1] / len(tables)]
        scatter += rng.multinomial(n, weights / weights.sum(), size=RESAMPLES) @ units / n - center
    return scatter / len(tables) / _UNIT


def _draws_beyond(tables: Sequence[DifferenceCounts], observed: float) -> int:
    return int(np.count_nonzero(np.abs(_scatter(tables)) >= abs(observed) - 1 / _UNIT))


def _is_hopeless(tables: Sequence[DifferenceCounts], observed: float) -> bool:
    # Drawing is what costs; Bernstein's inequality tells when the chance that any draw lies beyond is below 1e-6.
    variance = largest = 0.0
    for table in tables:
        deviations, counts = table[0] / _UNIT - _mean(table) / _UNIT, table[1]
        share = 1 / (len(tables) * int(counts.sum()))
        variance += share**2 * math.fsum(counts * deviations**2)
        largest = max(largest, share * float(np.abs(deviations).max()))
    exponent = observed**2 / (2 * (variance + largest * abs(observed) / 3)) if variance else 0.0
    return 2 * RESAMPLES * math.exp(-exponent) < 1e-6


def _seed(tables: Sequence[DifferenceCounts]) -> int:
    # Magnitudes only, so that which row comes first changes nothing but the sign of what is drawn.
    sizes = [sorted(zip(np.abs(units / _UNIT).tolist(), counts.tolist(), strict=True)) for units, counts in tables]
    return int.from_bytes(hashlib.sha256(repr(sizes).encode()).digest()[:16], "little")


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

    The first row leads a group and is compared with every later row, Holm over these. The rows directly after it that
    are not told apart from it belong to its group; the first that is told apart leads the next, even if a row further
    down is not: so groups are runs of neighbors, and a group's rows are all tied with its leader, not necessarily with
    one another. Rows without a common sample cannot be compared, and are not tied.

    Args:
        rows: The rows from best to worst.
    """
    leaders: list[int] = []
    while len(leaders) < len(rows):
        leader = len(leaders)
        later = [paired_p(rows[leader], row) for row in rows[leader + 1 :]]
        adjusted = iter(holm([p for p in later if p is not None]))
        tied = [p is not None and next(adjusted) >= 1 - LEVEL for p in later]
        size = 1 + (tied.index(False) if False in tied else len(tied))
        leaders += [leader] * size
    return leaders
