"""The accuracy of the worst class, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv, ndtri

from robbench.evaluation.statistics import LEVEL
from robbench.results.schema import Floats, Measure

_TAIL = (1 - LEVEL) / 2
_Z = -float(ndtri(_TAIL))
_TIED = 0.045
"""Level of the upper end where classes tie. The lower end does not err there, which leaves 5 %; but tests on estimated
rates err at up to 1.4 times their level."""


def worst_class(rates: Sequence[Measure], dispersion: float = 1.0) -> Measure:
    """The lowest of the class rates, with a 95 % interval for the lowest of the true ones.

    The lowest of several observed rates lies below the lowest true one as a rule, the further the more classes compete.
    So the upper end is tested on all classes together: it is the largest m for which it still has a chance of 2.5 %
    (one class far below the others) to 4.5 % (ties) that any class lies as many standard errors below m as this one.
    The class seen lowest then has the rate m, and the others estimated rates of at least m. The lower end is the lowest
    of the classes' own lower bounds at 2.5 % each; where classes tie, it is too high only if all of these are.

    Simulated coverage is 93 to 97 % where one class is clearly worst or many tie, and up to 99 % where the others are
    one or two standard errors above the worst, or counts are coarse. Of 100 classes, it falls to 84 % where a tenth or
    half tie somewhat below the rest, which looks as if fewer did. To be exact everywhere is impossible: the lowest of
    several means has a kink where they tie, and no estimate of it is unbiased nearby (Hirano and Porter, Econometrica
    80, 2012, 1769-1790). Tails lie halfway between Jeffreys', right on average over rates (Cai, Journal of Statistical
    Planning and Inference 131, 2005, 63-88), and Clopper and Pearson's, right at every rate.

    Args:
        rates: The classes' own; ``n`` of the result is the worst class's own.
        dispersion: Of the values that they are means of: see ``robbench.evaluation.statistics.dispersion``.
    """
    seen = [rate for rate in rates if rate.n]
    if not seen:
        return Measure(0.0, 0.0, 1.0, 0)
    worst = min(seen, key=lambda rate: rate.value)
    values, sizes = np.array([rate.value for rate in seen]), np.array([rate.n / dispersion for rate in seen])
    low = float(_lower(values, sizes, _TAIL).min())
    return Measure(worst.value, min(worst.value, low), _upper_end(_Classes.competing(values, sizes)), worst.n)


def _lower(values: Floats, sizes: Floats, tail: float) -> Floats:
    bounds: Floats = betaincinv(values * sizes + 0.25, sizes - values * sizes + 0.75, tail)
    return bounds


def _upper(values: Floats, sizes: Floats, tail: float) -> Floats:
    bounds: Floats = betaincinv(values * sizes + 0.75, sizes - values * sizes + 0.25, 1 - tail)
    return bounds


def _upper_end(classes: _Classes) -> float:
    low, high = float(classes.values.min()), 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if classes.allows(middle) else (low, middle)
    return high


@dataclass(frozen=True)
class _Classes:
    """Classes that may be the worst: observed rates, effective numbers of samples, estimated rates."""

    values: Floats
    sizes: Floats
    estimates: Floats

    @classmethod
    def competing(cls, values: Floats, sizes: Floats) -> _Classes:
        """All but those whose lower bound is above another's upper one (Bonferroni)."""
        tail = _TAIL / len(values)
        rivals = _lower(values, sizes, tail) <= _upper(values, sizes, tail).min()
        return cls(values[rivals], sizes[rivals], _estimates(values[rivals], sizes[rivals]))

    def allows(self, lowest: float) -> bool:
        """Whether the class seen lowest, in standard errors, is not too low for a lowest true rate."""
        error = np.sqrt(lowest * (1 - lowest) / self.sizes)
        scores = (self.values - lowest) / error
        worst = int(scores.argmin())
        rates = np.maximum(self.estimates, lowest)
        rates[worst] = lowest
        right = self.sizes * (lowest + scores[worst] * error)
        higher = betainc(np.maximum(right + 0.75, 1e-9), self.sizes - right + 0.25, rates)
        # If the worst class's lower bound is too high, with what chance are all others' too?
        right = self.sizes * np.minimum(1.0, lowest + _Z * error)
        also = betainc(right + 0.25, self.sizes - right + 0.75, rates)
        also[worst] = 1.0
        alone: float = math.prod(also.tolist())
        chance: float = 1 - math.prod(higher.tolist())
        return chance > _TIED - (_TIED - _TAIL) * alone


def _estimates(values: Floats, sizes: Floats) -> Floats:
    """Rates pulled to their mean until they vary as much as the true ones do (Louis, JASA 79, 1984, 393-398).

    By how much those vary, beta distributed, tells the variance of the observed ones beyond a binomial one.
    """
    total = math.fsum(sizes)
    mean = math.fsum(values * sizes) / total
    sampling = mean * (1 - mean)
    surplus = total - math.fsum(sizes**2) / total - (len(values) - 1)
    if min(sampling, surplus) < 1e-9:
        return values
    excess = math.fsum(sizes * (values - mean) ** 2) / sampling - (len(values) - 1)
    correlation = min(1.0, max(0.0, excess / surplus))
    pulled: Floats = mean + np.sqrt(sizes * correlation / (1 + (sizes - 1) * correlation)) * (values - mean)
    return pulled
