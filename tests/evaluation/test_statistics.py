from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.evaluation.statistics import (
    Scores,
    balanced,
    class_rates,
    combine,
    covered,
    holm,
    paired_p,
    survival,
    tie_leaders,
    wilson,
    worst_class,
)
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
    assert balanced(rates[:1]) == rates[0]


def test_balanced_interval_of_two_classes_is_newcombes() -> None:
    # His worked example (Statistics in Medicine 17, 1998, method 10): 56/70 - 48/80 is 0.2 (0.0524 to 0.3339).
    # The difference is twice the mean of 56/70 and 32/80, less one.
    mean = balanced([wilson(56, 70), wilson(32, 80)])
    assert [2 * end - 1 for end in mean[:3] if end is not None] == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_balanced_interval_covers() -> None:
    rng = np.random.default_rng(0)
    for truth, sizes in (((0.9, 0.5, 0.2), (400, 50, 23)), ((0.98, 0.95, 0.05), (60, 60, 60))):
        hits = 0
        for drawn in rng.binomial(sizes, truth, size=(2000, 3)):
            mean = balanced([wilson(int(count), n) for count, n in zip(drawn, sizes, strict=True)])
            assert mean.low is not None
            assert mean.high is not None
            hits += int(mean.low <= np.mean(truth) <= mean.high)
        assert 0.93 < hits / 2000 < 0.985


def test_worst_class_is_the_lowest_and_its_lower_end_holds_for_every_class() -> None:
    rates = [wilson(90, 100), wilson(3, 5), wilson(65, 100), wilson(0, 0)]
    worst = worst_class(rates)
    assert worst.value == 0.6
    assert worst.n == 5
    assert worst.low == rates[1].low
    assert worst.high == rates[2].high


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


def test_paired_p_is_the_share_of_resamples_for_a_case_that_can_be_enumerated() -> None:
    # 8 samples of one class; a wins 4, b wins 1: a resample's mean difference is a multinomial sum.
    first, second = rows([1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 0])
    differences = {1: 4 / 8, -1: 1 / 8, 0: 3 / 8}
    exact = 0.0
    for up, down in itertools.product(range(9), repeat=2):
        if up + down <= 8 and abs((up - down) / 8 - 3 / 8) >= 3 / 8 - 1e-12:
            ways = math.factorial(8) // (math.factorial(up) * math.factorial(down) * math.factorial(8 - up - down))
            exact += ways * differences[1] ** up * differences[-1] ** down * differences[0] ** (8 - up - down)
    assert paired_p(first, second) == pytest.approx(exact, abs=0.02)


def test_paired_p_is_about_uniform_when_rows_are_equally_good() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [150, 50])
    small = 0
    for _ in range(200):
        pair = [Scores(np.arange(200), labels, (rng.random(200) < 0.6).astype(float)) for _ in range(2)]
        p = paired_p(*pair)
        assert p is not None
        small += p <= 0.05
    assert 1 <= small <= 22


def test_paired_p_weighs_classes_alike() -> None:
    # Better on all of the rare class, a little worse on the frequent one: balanced means tell a big difference.
    labels = [0] * 400 + [1] * 40
    first, second = rows([0.0] * 20 + [1.0] * 420, [1.0] * 400 + [0.0] * 40, labels=labels)
    p = paired_p(first, second)
    assert p is not None
    assert p < 0.001
    assert p == paired_p(first, second)
    unclassed = [Scores(row.ids, np.zeros(440, dtype=np.int64), row.values) for row in (first, second)]
    plain = paired_p(*unclassed)
    assert plain is not None
    assert plain > p


@given(st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_paired_p_is_never_surer_than_a_sign_test(n: int) -> None:
    first, second = rows([1.0] * n, [0.0] * n)
    p = paired_p(first, second)
    assert p is not None
    assert p >= min(1.0, 2.0 ** (1 - n))


def test_paired_p_of_equal_rows_and_of_rows_without_a_common_sample() -> None:
    first, second = rows([1, 0, 1], [1, 0, 1])
    assert paired_p(first, second) == 1.0
    elsewhere = Scores(np.array([7, 8]), np.array([0, 0]), np.array([1.0, 0.0]))
    assert paired_p(first, elsewhere) is None


def test_paired_p_uses_the_common_samples_only() -> None:
    first, second = rows([1.0] * 50, [1.0] * 50)
    longer = Scores(np.arange(500), np.zeros(500, dtype=np.int64), np.r_[np.ones(50), np.zeros(450)])
    assert paired_p(first, longer) == paired_p(first, second) == 1.0


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
