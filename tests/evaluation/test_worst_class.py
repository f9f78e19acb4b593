"""The interval of the worst class: its form, and how often it covers.

``pytest -m slow -s tests/evaluation/test_worst_class.py`` prints the tables.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, expit, logit, ndtri
from scipy.stats import beta, binom
from simulations import CLASSES, SPREADS, Array, class_counts, class_rates, report

from robbench.evaluation.statistics import wilson
from robbench.evaluation.worst_class import worst_class

Counts = tuple[int, int]

DRAWS = 500
"""Of the slow simulation; a share of 7 % is then off by 1.1 points."""
COUNTS = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def ends(*counts: Counts, dispersion: float = 1.0) -> tuple[float, float]:
    """The interval of classes of so many right of so many."""
    found = worst_class([wilson(*one) for one in counts], dispersion)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@given(st.lists(COUNTS, min_size=1, max_size=12))
def test_the_interval_holds_the_lowest_rate_whatever_the_order(counts: list[Counts]) -> None:
    low, high = ends(*counts)
    assert 0 <= low <= min(right / n for right, n in counts) <= high <= 1
    assert ends(*counts[::-1], (0, 0)) == pytest.approx((low, high), abs=1e-9)


@given(COUNTS)
def test_that_of_one_class_lies_between_jeffreys_and_the_exact_one(one: Counts) -> None:
    right, n = one
    low, high = ends(one)
    if right:
        assert beta.ppf(0.025, right, n - right + 1) < low
    if right < n:
        assert high < beta.ppf(0.975, right + 1, n - right)
    if 0 < right < n:
        assert low < beta.ppf(0.025, right + 0.5, n - right + 0.5)
        assert high > beta.ppf(0.975, right + 0.5, n - right + 0.5)


def test_a_class_without_a_rival_has_its_own_interval() -> None:
    alone, found = ends((3, 20)), worst_class([wilson(190, 200), wilson(3, 20), wilson(180, 200), wilson(0, 0)])
    assert alone == pytest.approx((beta.ppf(0.025, 3.25, 17.75), beta.ppf(0.975, 3.75, 17.25)))
    assert (found.value, found.n) == (0.15, 20)
    assert (found.low, found.high) == pytest.approx(alone)


def test_the_upper_end_allows_for_rivals() -> None:
    highs = [ends(*[(80, 100)] * classes)[1] for classes in (1, 2, 3, 10, 100, 1000)]
    assert highs == sorted(highs)
    assert highs[-1] < 0.93
    assert ends(*[(0, 10)] * 3)[0] == 0
    assert ends(*[(10, 10)] * 3)[1] == 1


def test_a_class_of_few_samples_does_not_hide_a_bad_one_of_many() -> None:
    bad = ends((500, 1000))
    low, high = ends((500, 1000), (5, 10))
    assert low < bad[0], "that of few may be worse"
    assert high == pytest.approx(bad[1], abs=0.005)


def test_values_that_vary_less_than_counts_have_a_narrower_interval() -> None:
    wide, narrow = (ends((30, 50), (35, 50), dispersion=one) for one in (1.0, 0.25))
    assert wide[0] < narrow[0] < 0.6 < narrow[1] < wide[1]
    assert narrow == pytest.approx(ends((120, 200), (140, 200)))


@pytest.mark.parametrize("right", [(30, 31, 33), (30, 40, 48), (2, 2, 3), (45, 46, 46, 47, 48, 48, 49, 50)])
def test_the_upper_end_is_where_so_low_a_rate_has_its_level(right: tuple[int, ...]) -> None:
    # By binomial probabilities: that the lowest is below, or at most, what it is.
    n = 50
    _, high = ends(*[(one, n) for one in right])
    (estimates,) = Draws.of(np.array([right]), np.full(len(right), n)).estimates
    rates = np.maximum(estimates, high)
    rates[0] = high
    below, at_most = (1 - binom.sf(right[0] - less, n, rates).prod() for less in (1, 0))
    assert below < 0.045
    assert at_most > 0.025


# ------------------------------------------------------------------------------------------------------------- coverage


@dataclass(frozen=True)
class Draws:
    """``worst_class`` of many draws at once, written a second time.

    Attributes:
        right: Counts, shape ``(draws, classes)``.
        sizes: Samples by class, shape ``(classes,)``.
        rivals: Which classes may be the worst.
        estimates: Their rates.
    """

    right: Array
    sizes: Array
    rivals: Array
    estimates: Array

    @classmethod
    def of(cls, right: Array, sizes: Array) -> Draws:
        tail = 0.025 / len(sizes)
        # A class's lower bound is at most another's upper one where its tail there is large enough.
        bounds = {n: beta.ppf(1 - tail, np.arange(n + 1) + 0.75, n - np.arange(n + 1) + 0.25) for n in set(sizes)}
        highs = np.min([bounds[n][counts] for n, counts in zip(sizes, right.T, strict=True)], axis=0)[:, None]
        rivals = betainc(right + 0.25, sizes - right + 0.75, highs) >= tail
        count = rivals.sum(axis=1, keepdims=True)

        def total(values: Array) -> Array:
            sums: Array = np.where(rivals, values, 0).sum(axis=1, keepdims=True)
            return sums

        samples, rates = total(sizes), right / sizes
        mean = total(right) / samples
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = total(sizes * (rates - mean) ** 2) / (mean * (1 - mean)) - (count - 1)
            correlation = np.clip(excess / (samples - total(sizes**2) / samples - (count - 1)), 0, 1)
            pulled = mean + (sizes * correlation / (1 + (sizes - 1) * correlation)) ** 0.5 * (rates - mean)
        alone = (count == 1) | (mean * (1 - mean) < 1e-9)
        return cls(right, sizes, rivals, np.where(alone, rates, pulled))

    def misses(self, truth: Array) -> tuple[Array, Array]:
        """Whether the interval lies above the lowest true rate, and whether below; shape ``(draws,)``."""
        draws, rates, m = np.arange(len(truth)), self.right / self.sizes, truth[:, None]
        error = (m * (1 - m) / self.sizes) ** 0.5
        scores = np.where(self.rivals, rates - m, np.inf) / error
        worst = scores.argmin(axis=1)
        assumed = np.maximum(self.estimates, m)
        assumed[draws, worst] = truth
        cut = self.sizes * (m + scores.min(axis=1, keepdims=True) * error)
        cut = np.clip(cut, 1e-9 - 0.75, self.sizes)
        higher = np.where(self.rivals, betainc(cut + 0.75, self.sizes - cut + 0.25, assumed), 1).prod(axis=1)
        cut = self.sizes * np.minimum(1, m - ndtri(0.025) * error)
        also = np.where(self.rivals, betainc(cut + 0.25, self.sizes - cut + 0.75, assumed), 1)
        also[draws, worst] = 1
        above = (betainc(self.right + 0.25, self.sizes - self.right + 0.75, m) < 0.025).all(axis=1)
        lowest = rates.min(axis=1)
        return above & (truth < lowest), (1 - higher <= 0.045 - 0.02 * also.prod(axis=1)) & (truth > lowest)


@pytest.mark.parametrize(
    ("kind", "classes", "n"), [("balanced", 10, 20), ("imbalanced", 10, 40), ("imbalanced", 3, 300)]
)
def test_many_draws_at_once_miss_what_each_misses(kind: str, classes: int, n: int) -> None:
    rng = np.random.default_rng(n)
    sizes = class_counts(kind, classes, n * classes)
    right = rng.binomial(sizes, rng.beta(8, 2, size=(60, classes)))
    intervals = [ends(*zip(one.tolist(), sizes.tolist(), strict=True)) for one in right]
    draws = Draws.of(right, sizes)
    for truth in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        above, below = draws.misses(np.full(len(right), truth))
        assert above.tolist() == [low > truth for low, _ in intervals]
        assert below.tolist() == [high < truth for _, high in intervals]


def steps(classes: int, tied: int, others: float, far: int = 0) -> Array:
    """So many classes at 0, others above them, some of these far."""
    found = np.full(classes, others)
    found[:tied], found[classes - far :] = 0, 8
    return found


def shapes(classes: int) -> dict[str, Array]:
    """By how many standard errors, on the scale of log odds, the classes' rates exceed the lowest."""
    return {
        "all equal": np.zeros(classes),
        "one 8 below": steps(classes, 1, 8),
        "one 3 below": steps(classes, 1, 3),
        "one 2 below": steps(classes, 1, 2),
        "one 1 below": steps(classes, 1, 1),
        "one 1 below, some far": steps(classes, 1, 1, classes // 5),
        "two 2 below": steps(classes, 2, 2),
        "a tenth 2 below": steps(classes, max(1, classes // 10), 2),
        "half 1 below": steps(classes, (classes + 1) // 2, 1),
        "half 3 below": steps(classes, (classes + 1) // 2, 3),
        "even over 2": np.linspace(0, 2, classes),
        "even over 6": np.linspace(0, 6, classes),
    }


@dataclass(frozen=True)
class Setting:
    """Of a simulation.

    Attributes:
        shape: How rates differ between classes: one of ``shapes`` or of ``SPREADS``.
        kind: Of the numbers of samples by class.
        classes: Their number.
        n: Samples per class on average.
        rate: The lowest rate, or the mean of ``SPREADS``. Draws differ by up to a quarter of its distance to 0 or 1.
    """

    shape: str
    kind: str
    classes: int
    n: int
    rate: float

    @property
    def expected(self) -> float:
        """How often the rarer of right and wrong is expected in a class."""
        return self.n * min(self.rate, 1 - self.rate)

    def misses(self, draws: int) -> tuple[float, float]:
        """How often the interval lies above the lowest true rate, and how often below."""
        rng = np.random.default_rng([self.classes, self.n, int(self.rate * 1e4), *self.shape.encode()])
        sizes = class_counts(self.kind, self.classes, self.n * self.classes)
        if self.shape in SPREADS:
            rates = [class_rates(rng, self.rate, SPREADS[self.shape], self.classes) for _ in range(draws)]
            truth = np.array(rates)
        else:
            near = min(self.rate, 1 - self.rate) * rng.uniform(0.75, 1.25, size=(draws, 1))
            lowest = near if self.rate <= 0.5 else 1 - near
            truth = expit(logit(lowest) + shapes(self.classes)[self.shape] / (sizes * near * (1 - near)) ** 0.5)
        truth = np.clip(truth, 1e-9, 1 - 1e-9)
        above, below = Draws.of(rng.binomial(sizes, truth), sizes).misses(truth.min(axis=1))
        return float(above.mean()), float(below.mean())


def report_misses(found: dict[Setting, tuple[float, float]]) -> None:
    """By shape and number of classes: coverage by rate, averaged over sizes, and its extremes."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for setting, missed in found.items():
        lines.setdefault(f"{setting.classes} classes, {setting.shape}", []).append((setting.rate, 1 - sum(missed)))
    report("Coverage of the worst class in percent", lines)
    counted = [1 - sum(missed) for setting, missed in found.items() if setting.expected >= 5]
    inside = np.mean([0.925 <= one <= 0.975 for one in counted])
    print(f"five or more of the rarer kind expected: {100 * inside:.0f} % of the settings inside 93 to 97 % (rounded)")
    for setting in sorted(found, key=lambda setting: -sum(found[setting]))[:5]:
        print(f"least: {100 - 100 * sum(found[setting]):.1f} at {setting}")


def check_misses(found: dict[Setting, tuple[float, float]], slack: float) -> None:
    for setting, missed in found.items():
        covered = 1 - sum(missed)
        # Among 100 classes a few that tie, somewhat below the rest, look as if one were alone.
        hard = setting.classes == 100 and setting.shape.startswith(("a tenth", "half"))
        assert covered >= (0.82 if hard else 0.93) - slack, setting
        if setting.expected >= 5 and setting.shape in ("all equal", "one 8 below", "half 3 below"):
            assert covered <= 0.97 + slack, setting
        elif setting.expected >= 5 and setting.shape not in SPREADS:
            assert covered <= 0.985 + slack, setting


def test_the_interval_covers() -> None:
    shown = ("all equal", "one 8 below", "one 2 below", "even over 6")
    found = {
        one: one.misses(600)
        for one in itertools.starmap(
            Setting, itertools.product(shown, ["balanced"], (3, 10), (50, 1000), (0.05, 0.5, 0.95))
        )
    }
    check_misses(found, slack=0.03)


@pytest.mark.slow
def test_the_interval_covers_on_the_whole_grid() -> None:
    rates = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
    found = {}
    for classes, n, kind, rate in itertools.product(CLASSES, (10, 50, 1000), ("balanced", "imbalanced"), rates):
        if kind == "balanced" or n == 50:
            for shape in (*shapes(classes), *list(SPREADS)[1:]):
                setting = Setting(shape, kind, classes, n, rate)
                found[setting] = setting.misses(DRAWS)
    report_misses(found)
    check_misses(found, slack=4 * (0.07 * 0.93 / DRAWS) ** 0.5)
