from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robbench.evaluation.statistics import (
    Difference,
    Scores,
    balanced,
    balanced_mean,
    class_rates,
    combine,
    compare,
    covered,
    dispersion,
    holm,
    mean_rate,
    survival,
    tie_leaders,
    wilson,
)
from robbench.evaluation.worst_class import worst_class
from robbench.results.schema import Measure

Z = 1.959963984540054


def rows(*values: list[float], labels: list[int] | None = None) -> list[Scores]:
    n = len(values[0])
    truth = np.array(labels if labels is not None else [0] * n)
    return [Scores(np.arange(n), truth, np.array(row, dtype=float)) for row in values]


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_where_the_score_test_just_rejects(case: tuple[int, int]) -> None:
    successes, n = case
    rate = wilson(successes, n)
    assert rate.low is not None
    assert rate.high is not None
    assert 0 <= rate.low <= rate.value == successes / n <= rate.high <= 1
    for end in (rate.low, rate.high):
        if 0 < end < 1:
            score = abs(rate.value - end) / math.sqrt(end * (1 - end) / n)
            assert score == pytest.approx(Z, rel=1e-6)


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    for successes, n in ((0, 10), (3, 10), (10, 10), (81, 263)):
        theirs = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n)[1:3] == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_samples_say_nothing() -> None:
    assert wilson(0, 0) == Measure(0.0, 0.0, 1.0, 0)
    assert balanced([]) == balanced([wilson(0, 0)]) == worst_class([]) == Measure(0.0, 0.0, 1.0, 0)


def test_balanced_mean_ignores_class_sizes_and_empty_classes() -> None:
    values = np.array([1, 1, 1, 1, 0, 0, 1])
    rates = class_rates(values, np.array([0, 0, 0, 0, 2, 2, 2]), 4)
    assert [rate.n for rate in rates] == [4, 0, 3, 0]
    mean = balanced(rates)
    assert mean.value == pytest.approx((1 + 1 / 3) / 2)
    assert mean.n == 7
    assert balanced_mean(Scores(np.arange(7), np.array([0, 0, 0, 0, 2, 2, 2]), values)) == mean.value


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_balanced_interval_of_one_class_is_wilsons(case: tuple[int, int]) -> None:
    assert balanced([wilson(*case)])[:3] == pytest.approx(wilson(*case)[:3], abs=1e-12)


@pytest.mark.parametrize("sizes", [(20,) * 10, (5, 50, 500), (1, 1, 1)])
def test_where_all_are_right_or_wrong_classes_have_one_rate(sizes: tuple[int, ...]) -> None:
    effective = len(sizes) ** 2 / sum(1 / n for n in sizes)
    none, every = (balanced([wilson(share * n, n) for n in sizes]) for share in (0, 1))
    assert none[:3] == pytest.approx((0, 0, Z**2 / (effective + Z**2)))
    assert every[:3] == pytest.approx((1, effective / (effective + Z**2), 1))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8))
def test_balanced_ends_are_where_the_score_test_just_rejects(counts: list[tuple[int, int]]) -> None:
    rates = [wilson(right, right + wrong) for right, wrong in counts]
    mean = balanced(rates)
    assert mean.low is not None
    assert mean.high is not None
    assert 0 <= mean.low <= mean.value <= mean.high <= 1
    mirrored = balanced([wilson(wrong, right + wrong) for right, wrong in counts])
    if mean.n:
        assert (1 - mean.high, 1 - mean.low) == pytest.approx((mirrored.low, mirrored.high), abs=1e-9)
    seen = [rate for rate in rates if rate.n]
    if not 0 < mean.high < 1 or not seen:
        return
    # Independent of how the end is found: the variance at the candidate, class by class.
    classes, error = len(seen), 1 - mean.value
    shrunk = (1 - mean.high) / error
    variance = 0.0
    for rate in seen:
        wrong = 1 - rate.value
        known = wrong - (1 - 1 / classes) * (1 - error) / rate.n
        variance += (shrunk * wrong - shrunk**2 * wrong * known) / rate.n / classes**2
    assert (mean.high - mean.value) ** 2 == pytest.approx(Z**2 * variance, rel=1e-6, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=20))
@example([(5e-324, 0), (0.0, 0)])
@example([(1 - 2**-53, 0), (1.0, 0), (1 - 2**-53, 1)])
@example([(1e-300, 0), (1.0, 1), (1 - 2**-53, 1)])
def test_intervals_of_any_values_hold_them(samples: list[tuple[float, int]]) -> None:
    values, labels = np.array([value for value, _ in samples]), np.array([label for _, label in samples])
    found = class_rates(values, labels, 6)
    shrunk = dispersion(values, labels)
    assert 0 < shrunk <= 1
    for measure in (mean_rate(values), balanced(found, shrunk), worst_class(found, shrunk), *found):
        assert measure.low is not None
        assert measure.high is not None
        assert 0 <= measure.low <= measure.value <= measure.high <= 1


def test_values_between_zero_and_one_count_by_their_variance() -> None:
    labels = np.zeros(400, dtype=np.int64)
    counts, halves = np.arange(400) % 2, np.full(400, 0.5)
    assert dispersion(counts, labels) == 1
    assert mean_rate(counts) == wilson(200, 400)
    assert dispersion(halves, labels) == pytest.approx(0.5 / 100.5), "of two unseen samples alone"
    uniform = (np.arange(400) + 0.5) / 400
    assert dispersion(uniform, labels) == pytest.approx(1 / 3, abs=0.01)
    found, plain = mean_rate(uniform), wilson(200, 400)
    assert (found.high or 0) - (found.low or 0) == pytest.approx(
        ((plain.high or 0) - (plain.low or 0)) / 3**0.5, rel=0.01
    )
    assert dispersion(np.zeros(0), np.zeros(0, dtype=np.int64)) == 1
    assert dispersion(np.ones(5), np.zeros(5, dtype=np.int64)) == 1


def test_combine_takes_the_common_samples_in_any_order() -> None:
    first = Scores(np.array([5, 1, 3]), np.array([2, 0, 1]), np.array([1.0, 0.0, 1.0]))
    second = Scores(np.array([1, 5, 9]), np.array([0, 2, 0]), np.array([1.0, 0.0, 1.0]))
    both = combine([first, second], np.mean)
    assert both.ids.tolist() == [1, 5]
    assert both.labels.tolist() == [0, 2]
    assert both.values.tolist() == [0.5, 0.5]
    assert combine([first, second], np.min).values.tolist() == [0.0, 0.0]


def test_a_curve_and_its_area_by_hand() -> None:
    # Wrong unchanged; fooled within 0.1; fooled at the end; never fooled.
    distances = rows([0.0, 0.1, 0.2, math.inf])[0]
    assert survival(distances, 0.05).values.tolist() == [0, 1, 1, 1]
    assert survival(distances, 0.1).values.tolist() == [0, 0, 1, 1]
    assert survival(distances, 0.2).values.tolist() == [0, 0, 0, 1]
    assert covered(distances, 0.2).values.tolist() == [0, 0.5, 1, 1]


@given(st.lists(st.one_of(st.floats(0, 2), st.just(math.inf)), min_size=1, max_size=20), st.floats(0.1, 3))
def test_curves_fall_and_the_area_is_their_integral(found: list[float], largest: float) -> None:
    distances = rows(found)[0]
    radii = (np.arange(2000) + 0.5) / 2000 * largest
    curve = np.array([survival(distances, radius).values.mean() for radius in radii])
    assert (np.diff(curve) <= 0).all()
    assert covered(distances, largest).values.mean() == pytest.approx(curve.mean(), abs=1e-3)


def compared(first: Scores, second: Scores) -> Difference:
    found = compare([first], [second])
    assert found is not None
    return found


def test_a_difference_of_one_class_is_bonett_and_prices() -> None:
    # Their formula on the 21 children of Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014, 2850-2875), of
    # whom 7 changed one way and 1 the other: 0.013 to 0.508.
    first, second = rows([0.0] * 7 + [1.0] + [1.0] * 13, [1.0] * 7 + [0.0] + [1.0] * 13)
    found = compared(first, second)
    up, down = 8 / 23, 2 / 23
    half = Z * math.sqrt((up + down - (up - down) ** 2) / 23)
    assert found.added[:3] == pytest.approx((6 / 21, up - down - half, up - down + half))
    assert found.added[1:3] == pytest.approx((0.013, 0.508), abs=5e-4)
    assert found.p == pytest.approx(math.erfc(Z * (up - down) / half / math.sqrt(2)))


@settings(deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 6), st.integers(1, 80))
def test_interval_and_p_agree_and_turn_with_the_rows(seed: int, seeds: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    shares = rng.random(2)
    first, second = (
        [Scores(np.arange(n), labels, (rng.random(n) < share).astype(float)) for _ in range(seeds)] for share in shares
    )
    found, turned = compare(first, second), compare(second, first)
    assert found is not None
    assert turned is not None
    value, low, high, count = found.added
    assert low is not None
    assert high is not None
    assert -1 <= low <= value <= high <= 1
    assert (found.p < 0.05) == (not low <= 0 <= high)
    assert 0 < found.p <= 1
    assert count == n
    assert turned == Difference(Measure(-value, -high, -low, n), found.p, tuple(-one for one in found.by_seed))
    assert value == pytest.approx(np.mean(found.by_seed))
    means = [np.mean([balanced_mean(part) for part in row]) for row in (first, second)]
    assert value == pytest.approx(means[1] - means[0])


def test_methods_are_compared_as_by_student_where_seeds_alone_vary() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(4)
    gains = (0.1, 0.3, 0.2, 0.25)
    n = 100_000  # so that images add next to nothing
    start = rng.random(n) < 0.4
    first = [Scores(np.arange(n), np.zeros(n, dtype=np.int64), start.astype(float)) for _ in gains]
    second = [
        Scores(np.arange(n), np.zeros(n, dtype=np.int64), (start | (rng.random(n) < gain)).astype(float))
        for gain in gains
    ]
    found = compare(first, second)
    assert found is not None
    theirs = ttest_1samp(found.by_seed, 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.05)
    assert found.added[1:3] == pytest.approx(tuple(theirs.confidence_interval(0.95)), abs=2e-3)


def test_methods_are_never_surer_than_their_checkpoints() -> None:
    # Every seed gains the same images, so that seeds do not vary at all: the images still do.
    first, second = rows([0.0] * 200, [1.0] * 20 + [0.0] * 180)
    checkpoints, methods = compare([first], [second]), compare([first] * 3, [second] * 3)
    assert checkpoints is not None
    assert methods is not None
    assert methods.added == pytest.approx(checkpoints.added)
    assert methods.p == pytest.approx(checkpoints.p, abs=1e-12)
    # A gain that one seed alone shows is one of that checkpoint, not of the method.
    methods = compare([first] * 3, [second, first, first])
    assert methods is not None
    assert methods.p > 0.05
    assert compared(first, second).p < 0.001


def test_two_seeds_tell_of_checkpoints_alone() -> None:
    first, second = rows([0.0] * 200, [1.0] * 20 + [0.0] * 180)
    found, one = compare([first] * 2, [second, first]), compared(first, replace(second, values=second.values / 2))
    assert found is not None
    assert (found.added, found.p) == (one.added, one.p)
    assert found.by_seed == pytest.approx((0.1, 0))


def test_comparisons_weigh_classes_alike() -> None:
    # Better on all of the rare class, a little worse on the frequent one: balanced means tell a big difference.
    labels = [0] * 400 + [1] * 40
    first, second = rows([0.0] * 20 + [1.0] * 420, [1.0] * 400 + [0.0] * 40, labels=labels)
    p = compared(first, second).p
    assert p < 0.001
    unclassed = [Scores(row.ids, np.zeros(440, dtype=np.int64), row.values) for row in (first, second)]
    assert compared(*unclassed).p > p


@given(st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_p_is_never_surer_than_a_sign_test(n: int) -> None:
    found = compared(*rows([1.0] * n, [0.0] * n))
    assert found.p >= min(1.0, 2.0 ** (1 - n))
    assert (found.added.high is not None and found.added.high >= 0) is (n < 6), "an interval that holds 0 goes with it"


def test_equal_rows_and_rows_without_a_common_sample() -> None:
    first, second = rows([1, 0, 1], [1, 0, 1])
    found = compared(first, second)
    assert (found.added.value, found.p) == (0, 1)
    assert (found.added.low or 0) < 0 < (found.added.high or 0), "that nothing differs here is not that nothing does"
    elsewhere = Scores(np.array([7, 8]), np.array([0, 0]), np.array([1.0, 0.0]))
    assert compare([first], [elsewhere]) is None


def test_thirds_that_add_up_differ_by_nothing() -> None:
    thirds = Scores(np.arange(3), np.zeros(3, dtype=np.int64), np.array([0.1 + 0.2, 1 / 3, 0.7]))
    same = replace(thirds, values=np.array([0.3, 1 - 2 / 3, 0.7]))
    assert compared(thirds, same).p == 1


def test_comparisons_use_the_common_samples_only() -> None:
    first, second = rows([1.0] * 50, [1.0] * 50)
    longer = Scores(np.arange(500), np.zeros(500, dtype=np.int64), np.r_[np.ones(50), np.zeros(450)])
    assert compared(first, longer) == compared(first, second)


def test_holm_on_a_textbook_family() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, found in zip(p_values, adjusted, strict=True):
        assert raw <= found <= min(1.0, raw * len(p_values))
    assert np.argsort(p_values, kind="stable").tolist() == sorted(
        range(len(p_values)), key=lambda place: (adjusted[place], p_values[place], place)
    )


def test_ties_are_with_the_leader_and_groups_are_runs() -> None:
    good, same, middle, low = rows(
        [1.0] * 100, [1.0] * 98 + [0.0] * 2, [1.0] * 60 + [0.0] * 40, [1.0] * 58 + [0.0] * 42
    )
    assert tie_leaders([good, same, middle, low]) == [0, 0, 2, 2]
    assert tie_leaders([good, good, good]) == [0, 0, 0]
    assert tie_leaders([good]) == [0]
    assert tie_leaders([]) == []


def test_a_row_below_one_told_apart_starts_no_tie_with_the_first() -> None:
    # The third row shares too few samples with the first to be told apart, but stands below one that is.
    first, second = rows([1.0] * 100, [0.0] * 40 + [1.0] * 60)
    few = Scores(np.arange(3), np.zeros(3, dtype=np.int64), np.array([1.0, 0.0, 0.0]))
    assert tie_leaders([first, second, few]) == [0, 1, 1]


def test_rows_that_cannot_be_compared_are_not_tied() -> None:
    first = rows([1.0, 1.0])[0]
    elsewhere = Scores(np.array([7, 8]), np.array([0, 0]), np.array([1.0, 1.0]))
    assert tie_leaders([first, elsewhere]) == [0, 1]
