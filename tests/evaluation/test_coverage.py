"""Simulations: how often intervals cover and tests err. The short ones see a fault of a few percent, the slow ones 1 %.

``pytest -m slow -s tests/evaluation/test_coverage.py`` prints the tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from robbench.evaluation.statistics import (
    Difference,
    Scores,
    balanced,
    compare,
    holm,
    mean_rate,
    tie_leaders,
    wilson,
    worst_class,
)
from robbench.results.schema import Measure

Array = NDArray[Any]

DRAWS = 1500
"""Of the slow simulations; a share of 5 % is then off by 0.6 points."""

RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
"""Mean rates. A draw's own differs by up to a quarter of the distance to 0 or 1, so that counts do not fall in step."""
CLASSES = (3, 10, 100)
SIZES = (50, 300, 2000)
"""Test images, those left out that are fewer than two a class."""
SPREADS = {"equal": None, "differ": 50.0, "differ widely": 5.0}
"""How rates differ between classes: not, or as beta variables of that concentration."""


def class_counts(kind: str, classes: int, n: int) -> Array:
    """Images by class: as many of each, or falling to a twentieth of the most."""
    weights = np.ones(classes) if kind == "balanced" else np.geomspace(1, 1 / 20, classes)
    counts: Array = np.maximum(2, np.round(weights / weights.sum() * n)).astype(int)
    return counts


def class_rates(rng: np.random.Generator, rate: float, spread: float | None, classes: int) -> Array:
    near = min(rate, 1 - rate) * rng.uniform(0.75, 1.25)
    mean = near if rate <= 0.5 else 1 - near
    return np.full(classes, mean) if spread is None else rng.beta(mean * spread, (1 - mean) * spread, size=classes)


def error(draws: int) -> float:
    """The standard error of a share of 5 %."""
    return float((0.95 * 0.05 / draws) ** 0.5)


def covers(found: Measure, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low - 1e-12 <= truth <= found.high + 1e-12


@dataclass(frozen=True)
class Case:
    classes: int
    n: int
    kind: str
    spread: str
    rate: float

    @property
    def is_discrete(self) -> bool:
        """Whether so few images of a class are expected to be the rarer of right and wrong that counts are coarse."""
        return bool(class_counts(self.kind, self.classes, self.n).min() * min(self.rate, 1 - self.rate) < 5)


def cases(classes: Sequence[int], sizes: Sequence[int], rates: Sequence[float]) -> Iterator[Case]:
    for found in itertools.product(classes, sizes, ("balanced", "imbalanced"), SPREADS, rates):
        case = Case(*found)
        if case.n >= 2 * case.classes:
            yield case


def coverage(case: Case, draws: int) -> dict[str, float]:
    """How often the intervals cover what they are for."""
    rng = np.random.default_rng(
        [case.classes, case.n, *case.kind.encode(), *case.spread.encode(), int(case.rate * 1e4)]
    )
    counts = class_counts(case.kind, case.classes, case.n)
    hits = np.zeros(3)
    for _ in range(draws):
        truth = class_rates(rng, case.rate, SPREADS[case.spread], case.classes)
        right = rng.binomial(counts, truth)
        rates = [wilson(int(one), int(count)) for one, count in zip(right, counts, strict=True)]
        hits += (
            covers(wilson(int(right.sum()), int(counts.sum())), float(truth @ counts / counts.sum())),
            covers(balanced(rates), float(truth.mean())),
            covers(worst_class(rates), float(truth.min())),
        )
    return dict(zip(("accuracy", "balanced", "worst class"), hits / draws, strict=True))


def report(title: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """A line for each name: figures in percent by column."""
    columns = sorted({column for cells in found.values() for column, _ in cells})
    print(f"\n{title}\n{'':46}" + "".join(f"{column:>8g}" for column in columns))
    for name, cells in found.items():
        shares = [[share for at, share in cells if at == column] for column in columns]
        print(f"{name:46}" + "".join(f"{100 * np.mean(one):8.1f}" if one else f"{'–':>8}" for one in shares))


def check_intervals(found: dict[Case, dict[str, float]], slack: float) -> None:
    """93 to 97 %, the upper limit on average over sizes; at least 89 % where counts are coarse."""
    for name in ("accuracy", "balanced", "worst class"):
        for case, covered in found.items():
            assert covered[name] >= (0.89 if case.is_discrete else 0.93) - slack, (name, case)
    for name in ("accuracy", "balanced"):
        groups: dict[tuple[int, str, str, float], list[float]] = {}
        for case, covered in found.items():
            if not case.is_discrete:
                groups.setdefault((case.classes, case.kind, case.spread, case.rate), []).append(covered[name])
        for group, shares in groups.items():
            assert np.mean(shares) <= 0.97 + slack, (name, group)
    # Where rates differ a little, how many classes compete for the lowest rate is not known, and the interval is wide.
    for case, covered in found.items():
        if case.spread == "equal" and not case.is_discrete:
            assert covered["worst class"] <= 0.97 + slack, case


def test_intervals_cover() -> None:
    found = {case: coverage(case, 250) for case in cases((3, 10), (300,), (0.05, 0.5, 0.95))}
    check_intervals(found, slack=0.055)


@pytest.mark.slow
def test_intervals_cover_on_the_whole_grid() -> None:
    found = {case: coverage(case, DRAWS) for case in cases(CLASSES, SIZES, RATES)}
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("accuracy", "balanced", "worst class"):
        for case, covered in found.items():
            line = f"{name}, {case.classes} classes, {case.kind}, rates {case.spread}"
            lines.setdefault(line, []).append((case.rate, covered[name]))
    report(f"Coverage in percent, averaged over n of {SIZES}", lines)
    for name in ("accuracy", "balanced", "worst class"):
        least = min(found, key=lambda case: found[case][name])
        print(f"least {name}: {100 * found[least][name]:.1f} at {least}")
    check_intervals(found, slack=4 * error(DRAWS))


# ------------------------------------------------------------------------------------------------------------- averages


def area_coverage(draws: int, n: int, wrong: float, never: float) -> float:
    """Of the area under a curve: some are wrong from the start, some never fooled, the others in between."""
    rng, hits = np.random.default_rng(int(1000 * wrong) + n), 0
    for _ in range(draws):
        kinds = rng.random(n)
        values = np.where(kinds < wrong, 0.0, np.where(kinds > 1 - never, 1.0, rng.beta(2, 3, size=n)))
        hits += covers(mean_rate(values), never + 0.4 * (1 - wrong - never))
    return hits / draws


def seeds_coverage(draws: int, n: int, rate: float, shared: float) -> float:
    """Of the mean over three seeds, some of whose errors they share."""
    rng, hits = np.random.default_rng(int(1000 * rate) + n), 0
    for _ in range(draws):
        latent = shared**0.5 * rng.standard_normal(n) + (1 - shared) ** 0.5 * rng.standard_normal((3, n))
        hits += covers(mean_rate((latent < ndtri(rate)).mean(axis=0)), rate)
    return hits / draws


AVERAGES: dict[str, tuple[Callable[..., float], list[tuple[float, float]]]] = {
    "area under a curve: wrong, never fooled": (area_coverage, [(0.02, 0.1), (0.1, 0.0), (0.3, 0.3), (0.6, 0.2)]),
    "mean over three seeds: rate, shared": (seeds_coverage, [(0.1, 0.5), (0.5, 0.0), (0.5, 0.9), (0.9, 0.5)]),
}


def check_averages(draws: int, sizes: Sequence[int], slack: float) -> None:
    for name, (simulate, settings) in AVERAGES.items():
        for setting in settings:
            found = [simulate(draws, n, *setting) for n in sizes]
            print(f"{name} = {setting}: " + ", ".join(f"{100 * one:.1f}" for one in found))
            assert min(found) >= 0.93 - slack, (name, setting)
            assert max(found) <= 0.97 + slack, (name, setting)


def test_averages_cover() -> None:
    check_averages(300, (100,), slack=0.045)


@pytest.mark.slow
def test_averages_cover_on_the_whole_grid() -> None:
    print(f"\nCoverage in percent at n of {SIZES}")
    check_averages(DRAWS, SIZES, slack=3 * error(DRAWS))


# ---------------------------------------------------------------------------------------------------------- comparisons


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

    def rows(self, rng: np.random.Generator, rows: int, seeds: int = 1, gain: float = 0.0) -> list[list[Scores]]:
        """Some rows by seed; the rates of all but the first differ by a gain of the threshold."""
        n, hard = len(self.labels), 0.4
        image = hard**0.5 * rng.standard_normal(n)
        made: list[list[Scores]] = []
        for row in range(rows):
            own = self.habit**0.5 * rng.standard_normal(n)
            limit = self.limits(gain * (row > 0))[self.labels]
            made.append([])
            for _ in range(seeds):
                rest = (1 - hard - self.habit) ** 0.5 * rng.standard_normal(n)
                right = image + own + rest < limit + self.training * rng.standard_normal()
                made[-1].append(Scores(np.arange(n), self.labels, right.astype(float)))
        return made

    def limits(self, gain: float) -> Array:
        limits: Array = (ndtri(self.rates) + gain) * (1 + self.training**2) ** 0.5
        return limits

    def truth(self, gain: float) -> float:
        """The difference of the balanced means."""
        from scipy.special import ndtr

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


def errors(place: World, draws: int, seeds: int = 1, gain: float = 0.0) -> tuple[float, float]:
    """How often equal rows are told apart, and how often the interval covers the difference of unequal ones."""
    rng, size, hits = np.random.default_rng(int(1000 * place.rates[0]) + seeds), 0, 0
    for _ in range(draws):
        size += compared(compare(*place.rows(rng, 2, seeds))).p < 0.05
        hits += covers(compared(compare(*place.rows(rng, 2, seeds, gain))).added, place.truth(gain))
    return size / draws, hits / draws


def test_equal_rows_are_told_apart_in_one_of_twenty_draws() -> None:
    for case in (Case(3, 300, "balanced", "equal", 0.5), Case(10, 200, "imbalanced", "differ", 0.8)):
        size, hits = errors(world(case), 400, gain=0.5)
        assert size <= 0.06 + 0.035, case
        assert hits >= 0.93 - 0.04, case


@pytest.mark.slow
def test_paired_tests_have_their_size_on_the_whole_grid() -> None:
    tables: dict[str, dict[str, list[tuple[float, float]]]] = {"Size": {}, "Coverage": {}}
    grid = [case for case in cases(CLASSES, SIZES, (0.01, 0.05, 0.5, 0.99)) if case.spread != "differ"]
    found = {case: errors(world(case), DRAWS, gain=0.4) for case in grid}
    for case, figures in found.items():
        for table, figure in zip(tables.values(), figures, strict=True):
            line = f"{case.classes} classes, {case.kind}, rates {case.spread}"
            table.setdefault(line, []).append((case.rate, figure))
    for name, table in tables.items():
        report(f"{name} of paired comparisons in percent, averaged over n of {SIZES}", table)
    for case, (size, hits) in found.items():
        assert size <= 0.06 + 3 * error(DRAWS), case
        assert hits >= 0.93 - 3 * error(DRAWS), case


def ties(rows: int, draws: int, case: Case) -> tuple[float, float]:
    """How often any of equal rows is told apart: from a row fixed before by Holm, and in the ranking."""
    rng, place, holms, groups = np.random.default_rng(rows), world(case), 0, 0
    for _ in range(draws):
        made = [row[0] for row in place.rows(rng, rows)]
        holms += min(holm([compared(compare([made[0]], [row])).p for row in made[1:]])) < 0.05
        order = sorted(made, key=lambda row: -compared(compare([made[0]], [row])).added.value)
        groups += len(set(tie_leaders(order))) > 1
    return holms / draws, groups / draws


def test_equal_rows_are_tied() -> None:
    assert max(ties(5, 150, Case(3, 300, "balanced", "equal", 0.6))) <= 0.06 + 0.055


@pytest.mark.slow
def test_equal_rows_are_tied_however_many_there_are() -> None:
    print("\nAny of equal rows told apart, in percent: Holm against a fixed row, ranking")
    for rows, case in itertools.product(
        (3, 10, 20), (Case(3, 300, "balanced", "equal", 0.6), Case(10, 200, "imbalanced", "differ", 0.3))
    ):
        found = ties(rows, DRAWS // 3, case)
        print(f"{rows} rows, {case}: " + ", ".join(f"{100 * one:.1f}" for one in found))
        assert max(found) <= 0.06 + 3 * error(DRAWS // 3)


METHODS = [
    (seeds, training, habit)
    for seeds in (3, 5)
    for training, habit in ((0.0, 0.0), (0.0, 0.5), (0.03, 0.2), (0.1, 0.0), (0.1, 0.5), (0.3, 0.2))
]


def test_methods_that_do_not_differ_are_told_apart_in_one_of_twenty_draws() -> None:
    for seeds, training in ((3, 0.1), (5, 0.3)):
        size, hits = errors(world(Case(3, 300, "balanced", "equal", 0.6), training=training), 250, seeds, gain=0.3)
        assert size <= 0.06 + 0.045
        assert hits >= 0.93 - 0.05


@pytest.mark.slow
def test_comparisons_of_methods_have_their_size_on_the_whole_grid() -> None:
    print("\nComparisons of methods in percent: size, coverage; beside it the size of the test of these checkpoints")
    for case in (Case(3, 300, "balanced", "equal", 0.6), Case(10, 300, "imbalanced", "differ", 0.2)):
        for seeds, training, habit in METHODS:
            place = world(case, training=training, habit=habit)
            size, hits = errors(place, DRAWS, seeds, gain=0.3)
            rng = np.random.default_rng(1)
            pairs = ([_over_seeds(row) for row in place.rows(rng, 2, seeds)] for _ in range(DRAWS // 3))
            alone = np.mean([compared(compare([one], [other])).p < 0.05 for one, other in pairs])
            print(
                f"{case.classes} classes, {case.kind}, {seeds} seeds, training {training}, habit {habit}: "
                f"{100 * size:.1f}, {100 * hits:.1f}; {100 * alone:.1f}"
            )
            assert size <= 0.06 + 3 * error(DRAWS)
            assert hits >= 0.93 - 3 * error(DRAWS)


def _over_seeds(row: Sequence[Scores]) -> Scores:
    return Scores(row[0].ids, row[0].labels, np.mean([part.values for part in row], axis=0))
