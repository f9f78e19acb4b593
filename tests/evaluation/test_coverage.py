"""Simulations: how often intervals cover. The short ones see a fault of a few percent, the slow ones one of 1 %.

``pytest -m slow -s tests/evaluation/test_coverage.py`` prints the tables. What they show: intervals cover 93 to 97 %
where enough is right and wrong. Of few, counts are whole numbers, so that the coverage of any interval jumps with the
rate (Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16, 2001, 101-133):
it is 95 % on average over rates, at a single one 89 to 100 %. The worst class has simulations of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.special import ndtri
from simulations import CLASSES, SPREADS, Array, Case, cases, class_counts, class_rates, report

from robbench.evaluation.macro_f1 import macro_f1
from robbench.evaluation.statistics import balanced, mean_rate, wilson
from robbench.results.schema import Measure

DRAWS = 1500
"""Of the slow simulations; a share of 5 % is then off by 0.6 points."""

RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
"""Mean rates. A draw's own differs by up to a quarter of the distance to 0 or 1, so that counts do not fall in step."""
SIZES = (50, 300, 2000)
"""Test images, those left out that are fewer than two a class."""


def error(draws: int) -> float:
    """The standard error of a share of 5 %."""
    return float((0.95 * 0.05 / draws) ** 0.5)


def covers(found: Measure, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low - 1e-12 <= truth <= found.high + 1e-12


def coverage(case: Case, draws: int) -> dict[str, float]:
    """How often the intervals cover what they are for."""
    rng = np.random.default_rng(
        [case.classes, case.n, *case.kind.encode(), *case.spread.encode(), int(case.rate * 1e4)]
    )
    counts = class_counts(case.kind, case.classes, case.n)
    hits = np.zeros(2)
    for _ in range(draws):
        truth = class_rates(rng, case.rate, SPREADS[case.spread], case.classes)
        right = rng.binomial(counts, truth)
        rates = [wilson(int(one), int(count)) for one, count in zip(right, counts, strict=True)]
        hits += (
            covers(wilson(int(right.sum()), int(counts.sum())), float(truth @ counts / counts.sum())),
            covers(balanced(rates), float(truth.mean())),
        )
    return dict(zip(("accuracy", "balanced"), hits / draws, strict=True))


def check_intervals(found: dict[Case, dict[str, float]], slack: float) -> None:
    """93 to 97 %, the upper limit on average over sizes; at least 89 % where counts are coarse."""
    for name in ("accuracy", "balanced"):
        for case, covered in found.items():
            assert covered[name] >= (0.89 if case.is_discrete else 0.93) - slack, (name, case)
    for name in ("accuracy", "balanced"):
        groups: dict[tuple[int, str, str, float], list[float]] = {}
        for case, covered in found.items():
            if not case.is_discrete:
                groups.setdefault((case.classes, case.kind, case.spread, case.rate), []).append(covered[name])
        for group, shares in groups.items():
            assert np.mean(shares) <= 0.97 + slack, (name, group)


def test_intervals_cover() -> None:
    found = {case: coverage(case, 250) for case in cases((3, 10), (300,), (0.05, 0.5, 0.95))}
    check_intervals(found, slack=0.055)


@pytest.mark.slow
def test_intervals_cover_on_the_whole_grid() -> None:
    found = {case: coverage(case, DRAWS) for case in cases(CLASSES, SIZES, RATES)}
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("accuracy", "balanced"):
        for case, covered in found.items():
            line = f"{name}, {case.classes} classes, {case.kind}, rates {case.spread}"
            lines.setdefault(line, []).append((case.rate, covered[name]))
    report(f"Coverage in percent, averaged over n of {SIZES}", lines)
    for name in ("accuracy", "balanced"):
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


# ------------------------------------------------------------------------------------------------------------- macro F1


def mistakes(rates: Array, kind: str) -> Array:
    """The chances of predictions by true class: wrong ones are spread evenly, or are the next class."""
    classes = len(rates)
    spread = np.full((classes, classes), 1 / (classes - 1)) if kind == "spread" else np.roll(np.eye(classes), 1, axis=1)
    np.fill_diagonal(spread, 0)
    chances: Array = np.diag(rates) + (1 - rates)[:, None] * spread
    return chances


def macro_f1_coverage(case: Case, mistaken: str, draws: int) -> float | None:
    """How often the interval covers, of the draws that have one; None where counts are so small that few do."""
    rng = np.random.default_rng([case.classes, case.n, int(case.rate * 1e4)])
    counts = class_counts(case.kind, case.classes, case.n)
    labels, hits = np.repeat(np.arange(case.classes), counts), []
    for _ in range(draws):
        chances = mistakes(class_rates(rng, case.rate, SPREADS[case.spread], case.classes), mistaken)
        predicted = counts @ chances
        if min(counts.min(), predicted.min()) < 15:
            return None
        table = rng.multinomial(counts, chances)
        found = macro_f1(labels, np.repeat(np.tile(np.arange(case.classes), case.classes), table.ravel())[None])
        if found.low is not None:
            hits.append(covers(found, float(np.mean(2 * counts * chances.diagonal() / (counts + predicted)))))
    return float(np.mean(hits))


def check_macro_f1(found: dict[Case, float], slack: float) -> None:
    for case, covered in found.items():
        assert covered >= (0.89 if case.is_discrete else 0.93) - slack, case
        assert case.is_discrete or covered <= 0.97 + slack, case


def test_macro_f1_covers() -> None:
    for mistaken in ("spread", "next"):
        grid = [case for case in cases((3, 10), (300,), (0.5, 0.8)) if case.spread == "equal"]
        found = {case: macro_f1_coverage(case, mistaken, 300) for case in grid}
        check_macro_f1({case: one for case, one in found.items() if one is not None}, slack=0.045)


@pytest.mark.slow
def test_macro_f1_covers_on_the_whole_grid() -> None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for mistaken in ("spread", "next"):
        found = {}
        for case in cases(CLASSES, SIZES, (0.05, 0.5, 0.95)):
            covered = macro_f1_coverage(case, mistaken, DRAWS // 3)
            if covered is not None:
                found[case] = covered
                line = f"{case.classes} classes, {case.kind}, rates {case.spread}, {mistaken}"
                lines.setdefault(line, []).append((case.rate, covered))
        least = min(found, key=lambda case: found[case])
        print(f"least macro F1: {100 * found[least]:.1f} at {least}, {mistaken}")
        report(f"Coverage of macro F1 in percent, averaged over n of {SIZES}", lines)
        check_macro_f1(found, slack=4 * error(DRAWS // 3))
