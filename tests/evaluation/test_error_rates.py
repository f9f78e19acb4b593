"""Simulations: how often comparisons err. The short ones see a fault of a few percent, the slow ones one of 1 %.

``pytest -m slow -s tests/evaluation/test_error_rates.py`` prints the tables. What they show: tests err in at most 6 %
of draws at a nominal 5 %, and intervals of differences cover 93 % or more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import erfc, ndtr, ndtri, stdtrit
from simulations import CLASSES, SPREADS, Array, Case, cases, class_counts, class_rates, report

from robbench.evaluation.statistics import SEEDS, Difference, Scores, compare, holm, tie_leaders

MANY = 10_000
"""Draws of the slow simulations of tests, whose sizes are then off by 0.2 points; they are held to 6 % as they are."""


@dataclass(frozen=True)
class World:
    """Rows whose scores share how hard an image is.

    Attributes:
        labels: True classes of the images.
        rates: Rates by class, on average over seeds and images.
        training: Standard deviation of what a training adds to the thresholds of a row; an image is right where a
            standard normal variable is below its class's.
        habit: Share of that variable's variance that a method's seeds have in common beyond what all rows have.
    """

    labels: Array
    rates: Array
    training: float = 0.0
    habit: float = 0.2

    def right(self, rng: np.random.Generator, draws: int, rows: int, seeds: int = 1, gain: float = 0.0) -> Array:
        """Which images some rows predict correctly, shape ``(draws, rows, seeds, N)``.

        The rates of all rows but the first differ by a gain of the threshold.
        """
        n, hard = len(self.labels), 0.4

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32)

        latent = hard**0.5 * normal(draws, 1, 1, n) + self.habit**0.5 * normal(draws, rows, 1, n)
        latent = latent + (1 - hard - self.habit) ** 0.5 * normal(draws, rows, seeds, n)
        limits = np.stack([self.limits(gain * (row > 0))[self.labels] for row in range(rows)])
        found: Array = latent < limits[:, None] + self.training * normal(draws, rows, seeds, 1)
        return found.astype(np.float64)

    def rows(self, rng: np.random.Generator, rows: int, seeds: int = 1, gain: float = 0.0) -> list[list[Scores]]:
        """The same of one draw, by row and seed."""
        return [list(map(self.scores, row)) for row in self.right(rng, 1, rows, seeds, gain)[0]]

    def scores(self, values: Array) -> Scores:
        return Scores(np.arange(len(self.labels)), self.labels, values)

    def limits(self, gain: float) -> Array:
        limits: Array = (ndtri(self.rates) + gain) * (1 + self.training**2) ** 0.5
        return limits

    def truth(self, gain: float) -> float:
        """The difference of the balanced means."""
        return float((ndtr(ndtri(self.rates) + gain) - self.rates).mean())


def world(case: Case, **settings: float) -> World:
    rng = np.random.default_rng(5)
    counts = class_counts(case.kind, case.classes, case.n)
    return World(
        np.repeat(np.arange(case.classes), counts),
        np.clip(class_rates(rng, case.rate, SPREADS[case.spread], case.classes), 1e-4, 1 - 1e-4),
        **settings,
    )


def compared(found: Difference | None) -> Difference:
    assert found is not None
    return found


@dataclass(frozen=True)
class Compared:
    """What ``compare`` finds in many draws at once, written a second time; arrays of shape ``(draws,)``.

    Attributes:
        value: The differences.
        center: Where their intervals have their center.
        half: Half their width.
        images: The variance for these checkpoints.
        differing: How many images differ.
    """

    value: Array
    center: Array
    half: Array
    images: Array
    differing: Array

    @classmethod
    def of(cls, first: Array, second: Array, labels: Array) -> Compared:
        """From the scores of two rows, shape ``(draws, seeds, N)``."""
        counts, (draws, seeds) = np.bincount(labels).astype(float), first.shape[:2]
        classes, starts = len(counts), np.r_[0, np.cumsum(counts[:-1])].astype(int)

        def by_class(values: Array) -> Array:
            """Sums over the images of each class, which stand together."""
            sums: Array = np.add.reduceat(values, starts, axis=-1)
            return sums

        differences = np.round(second - first, 12)
        means = np.round(differences.mean(axis=1), 12)
        sums, squares = by_class(means), by_class(means**2)
        enlarged = counts + 2 / classes
        centers, overall = sums / enlarged, (sums / counts).mean(axis=1, keepdims=True)
        left = squares - 2 * centers * sums + counts * centers**2 + 2 / classes * (1 + centers**2)
        pooled = ((squares - 2 * overall * sums) / counts + overall**2).mean(axis=1, keepdims=True)
        images = ((left + (1 - 1 / classes) * pooled) / enlarged**2).sum(axis=1) / classes**2
        by_seed = (by_class(differences) / counts).mean(axis=2)
        normal = ndtri(0.975) ** 2
        squared = normal * images
        if seeds >= SEEDS:
            single = (by_class(differences.var(axis=1, ddof=1)) / counts**2).sum(axis=1) / classes**2 / seeds
            between = by_seed.var(axis=1, ddof=1) / seeds
            known = between + np.maximum(0, images - single)
            share = np.divide(between, known, out=np.zeros(draws), where=known > 0)
            squared = np.maximum(squared, known * (normal + (stdtrit(seeds - 1, 0.975) ** 2 - normal) * share**2))
        differing = np.count_nonzero(means, axis=1)
        return cls(by_seed.mean(axis=1), centers.mean(axis=1), squared**0.5, images, differing)

    @property
    def told_apart(self) -> Array:
        found: Array = (abs(self.center) > self.half) & (self.differing >= 6)
        return found

    @property
    def p(self) -> Array:
        """Of these checkpoints."""
        found: Array = np.maximum(erfc(abs(self.center) / (2 * self.images) ** 0.5), 2.0 ** (1 - self.differing))
        return found

    @property
    def ends(self) -> tuple[Array, Array]:
        none = np.where(self.told_apart, self.value, 0.0)
        low = np.minimum.reduce([self.value, self.center - self.half, none])
        return low.clip(-1), np.maximum.reduce([self.value, self.center + self.half, none]).clip(max=1)


def test_many_draws_at_once_give_what_each_gives() -> None:
    for case, seeds in itertools.product(
        (Case(3, 50, "balanced", "equal", 0.05), Case(10, 200, "imbalanced", "differ", 0.8)), (1, 2, 3, 5)
    ):
        place = world(case, training=0.1)
        made = place.right(np.random.default_rng(seeds), 40, 2, seeds, 0.2)
        many = Compared.of(made[:, 0], made[:, 1], place.labels)
        for at, (first, second) in enumerate(made):
            one = compared(compare(list(map(place.scores, first)), list(map(place.scores, second))))
            assert (one.added.low, one.added.value, one.added.high) == pytest.approx(
                (many.ends[0][at], many.value[at], many.ends[1][at])
            )
            assert (one.p < 0.05) == many.told_apart[at]
            assert seeds >= SEEDS or one.p == pytest.approx(min(1, many.p[at]))


def errors(place: World, draws: int, seeds: int = 1, gain: float = 0.0) -> tuple[float, float]:
    """How often equal rows are told apart, and how often the interval covers the difference of unequal ones."""
    rng, told, hits = np.random.default_rng(int(1000 * place.rates[0]) + seeds), 0, 0
    for some in portions(draws, seeds * len(place.labels)):
        equal, other = (place.right(rng, some, 2, seeds, by) for by in (0.0, gain))
        told += Compared.of(equal[:, 0], equal[:, 1], place.labels).told_apart.sum()
        low, high = Compared.of(other[:, 0], other[:, 1], place.labels).ends
        hits += ((low - 1e-12 <= place.truth(gain)) & (place.truth(gain) <= high + 1e-12)).sum()
    return told / draws, hits / draws


def portions(draws: int, size: int) -> Iterator[int]:
    """Draws of some size each, so many at once that they take little memory."""
    most = max(1, 500_000 // size)
    for start in range(0, draws, most):
        yield min(most, draws - start)


def test_equal_rows_are_told_apart_in_one_of_twenty_draws() -> None:
    for case in (Case(3, 300, "balanced", "equal", 0.5), Case(10, 200, "imbalanced", "differ", 0.8)):
        size, hits = errors(world(case), 4000, gain=0.5)
        assert size <= 0.06
        assert hits >= 0.93


@pytest.mark.slow
def test_paired_tests_have_their_size_on_the_whole_grid() -> None:
    tables: dict[str, dict[str, list[tuple[float, float]]]] = {"Size": {}, "Coverage": {}}
    sizes = (50, 300)  # So many draws of more images take long; tests have their size all the better there.
    grid = [case for case in cases(CLASSES, sizes, (0.01, 0.05, 0.5, 0.99)) if case.spread != "differ"]
    found = {case: errors(world(case), MANY, gain=0.4) for case in grid}
    for case, figures in found.items():
        for table, figure in zip(tables.values(), figures, strict=True):
            line = f"{case.classes} classes, {case.kind}, rates {case.spread}"
            table.setdefault(line, []).append((case.rate, figure))
    for name, table in tables.items():
        report(f"{name} of paired comparisons in percent, averaged over n of {sizes}", table)
    largest, least = (choose(found, key=lambda case: found[case][at]) for at, choose in ((0, max), (1, min)))
    print(f"largest size: {100 * found[largest][0]:.1f} at {largest}")
    print(f"least coverage: {100 * found[least][1]:.1f} at {least}")
    for case, (size, hits) in found.items():
        assert size <= 0.06, case
        assert hits >= 0.93, case


def ties(rows: int, draws: int, case: Case) -> tuple[float, float]:
    """How often any of equal rows is told apart: from a row fixed before, and any two; by Holm."""
    rng, place, fixed, any_two = np.random.default_rng(rows), world(case), 0, 0
    pairs = list(itertools.combinations(range(rows), 2))
    for some in portions(draws, rows * len(place.labels)):
        made = place.right(rng, some, rows)
        p = np.stack([Compared.of(made[:, one], made[:, other], place.labels).p for one, other in pairs])
        fixed += ((rows - 1) * p[: rows - 1].min(axis=0) < 0.05).sum()
        any_two += (len(pairs) * p.min(axis=0) < 0.05).sum()
    return fixed / draws, any_two / draws


def test_equal_rows_are_tied() -> None:
    case = Case(3, 300, "balanced", "equal", 0.6)
    assert max(ties(5, 2000, case)) <= 0.06
    # The ranking has ties by the same p values: groups only where Holm tells two rows apart.
    rng, place = np.random.default_rng(3), world(case)
    for _ in range(20):
        made = [row[0] for row in place.rows(rng, 4)]
        order = sorted(made, key=lambda row: -compared(compare([made[0]], [row])).added.value)
        p = [compared(compare([one], [other])).p for one, other in itertools.combinations(order, 2)]
        assert min(holm(p)) < 0.05 or len(set(tie_leaders(order))) == 1


@pytest.mark.slow
def test_equal_rows_are_tied_however_many_there_are() -> None:
    print("\nAny of equal rows told apart, in percent: Holm against a fixed row, any two (ranking)")
    for rows, case in itertools.product(
        (3, 10, 20), (Case(3, 300, "balanced", "equal", 0.6), Case(10, 200, "imbalanced", "differ", 0.3))
    ):
        found = ties(rows, MANY if rows < 20 else MANY // 4, case)
        print(f"{rows} rows, {case}: " + ", ".join(f"{100 * one:.1f}" for one in found))
        assert max(found) <= 0.06


METHODS = [
    (seeds, training, habit)
    for seeds in (3, 5)
    for training, habit in ((0.0, 0.0), (0.0, 0.5), (0.03, 0.2), (0.1, 0.0), (0.1, 0.5), (0.3, 0.2), (0.3, 0.5))
]


def test_methods_that_do_not_differ_are_told_apart_in_one_of_twenty_draws() -> None:
    for seeds, training in ((3, 0.1), (5, 0.3)):
        size, hits = errors(world(Case(3, 300, "balanced", "equal", 0.6), training=training), 8000, seeds, gain=0.3)
        assert size <= 0.06
        assert hits >= 0.93


@pytest.mark.slow
def test_comparisons_of_methods_have_their_size_on_the_whole_grid() -> None:
    print("\nComparisons of methods in percent: size, coverage; beside it the size of the test of these checkpoints")
    for case in (Case(3, 300, "balanced", "equal", 0.6), Case(10, 300, "imbalanced", "differ", 0.2)):
        for seeds, training, habit in METHODS:
            place = world(case, training=training, habit=habit)
            size, hits = errors(place, MANY, seeds, gain=0.3)
            made = place.right(np.random.default_rng(1), 1000, 2, seeds).mean(axis=2, keepdims=True)
            alone = Compared.of(made[:, 0], made[:, 1], place.labels).told_apart.mean()
            print(
                f"{case.classes} classes, {case.kind}, {seeds} seeds, training {training}, habit {habit}: "
                f"{100 * size:.1f}, {100 * hits:.1f}; {100 * alone:.1f}"
            )
            assert size <= 0.06
            assert hits >= 0.93
            # Where seeds vary by little more than their images, three to five cannot tell, and the interval is wide.
            assert hits <= (0.98 if training >= 0.1 or habit == 0.5 else 0.995)
