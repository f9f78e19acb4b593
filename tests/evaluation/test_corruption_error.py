"""Figures over a suite of corruptions, by examples done by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES, CorruptionKind
from robbench.core.errors import RequestError
from robbench.evaluation.corruption_error import mce, mean_corruption_accuracy, relative_mce

EVERY = (*MAIN, *EXTRA)
TWO: tuple[CorruptionKind, ...] = ("fog", "snow")
# Errors: fog 0.1 to 0.5, sum 1.5; snow 0.2 throughout, sum 1.
MODEL = {("fog", s): 1 - s / 10 for s in SEVERITIES} | {("snow", s): 0.8 for s in SEVERITIES}
# Errors: fog 0.6 throughout, sum 3; snow 0.4 throughout, sum 2.
BASELINE = {("fog", s): 0.4 for s in SEVERITIES} | {("snow", s): 0.6 for s in SEVERITIES}


def level(accuracy: float, **other: float) -> dict[tuple[str, int], float]:
    return {(kind, s): other.get(kind, accuracy) for kind in EVERY for s in SEVERITIES}


def test_there_are_fifteen_kinds_and_four_more() -> None:
    assert len(MAIN) == 15
    assert len(EXTRA) == 4
    assert len(set(EVERY)) == 19


def test_means_of_two_kinds() -> None:
    assert mean_corruption_accuracy(MODEL, TWO) == pytest.approx((0.7 + 0.8) / 2)
    assert mce(MODEL, BASELINE, TWO) == pytest.approx((1.5 / 3 + 1 / 2) / 2)
    # Clean errors 0.05 and 0.2: of the model 1.5 - 0.25 and 1 - 0.25 are left, of the baseline 3 - 1 and 2 - 1.
    assert relative_mce(MODEL, BASELINE, 0.95, 0.8, TWO) == pytest.approx((1.25 / 2 + 0.75 / 1) / 2)


def test_the_mean_of_ratios_is_not_the_ratio_of_means() -> None:
    halved = {(kind, s): 0.9 if kind == "fog" else 0.2 for kind, s in MODEL}
    # Errors 0.1 and 0.8 against 0.6 and 0.4: ratios 1/6 and 2.
    assert mce(halved, BASELINE, TWO) == pytest.approx((1 / 6 + 2) / 2)


def test_the_fifteen_are_meant_where_nothing_is_said() -> None:
    accuracies = level(0.7, spatter=0.0, saturate=0.0)
    assert mean_corruption_accuracy(accuracies) == pytest.approx(0.7)
    assert mean_corruption_accuracy(accuracies, EVERY) == pytest.approx(0.7 * 17 / 19)
    assert mce(accuracies, level(0.4)) == pytest.approx(0.5)
    assert mce(accuracies, level(0.4), EVERY) == pytest.approx((17 * 0.5 + 2 * 1 / 0.6) / 19)
    only = {key: value for key, value in accuracies.items() if key[0] in MAIN}
    assert mean_corruption_accuracy(only) == pytest.approx(0.7)


@given(accuracy=some.floats(0, 1), other=some.floats(0, 0.99))
def test_a_model_is_as_good_as_itself(accuracy: float, other: float) -> None:
    same = level(other, fog=other / 2)
    assert mce(same, same) == pytest.approx(1)
    assert relative_mce(same, same, 1.0, 1.0) == pytest.approx(1)
    assert mean_corruption_accuracy(level(accuracy)) == pytest.approx(accuracy, abs=1e-12)


def test_a_model_that_loses_nothing_has_no_relative_error() -> None:
    assert relative_mce(level(0.6), level(0.5), 0.6, 0.9) == pytest.approx(0, abs=1e-12)
    # One that gains by corruption has a negative one.
    assert relative_mce(level(0.7), level(0.5), 0.6, 0.9) == pytest.approx(-0.1 / 0.4)


def test_what_is_missing_is_named() -> None:
    part = level(0.5)
    del part["fog", 3]
    with pytest.raises(RequestError, match=r"the model was not put to 1 of 75 corruptions: fog at severity 3$"):
        mean_corruption_accuracy(part)
    with pytest.raises(RequestError, match="the baseline was not put to 1 of 75"):
        mce(level(0.5), part)
    with pytest.raises(
        RequestError, match=r"the model was not put to 85 of 95 corruptions: gaussian-noise .* and others"
    ):
        mean_corruption_accuracy(MODEL, EVERY)
    with pytest.raises(RequestError, match="no kind"):
        mean_corruption_accuracy(MODEL, ())


@pytest.mark.parametrize("wrong", [1.2, -0.1, float("nan"), 73.4])
def test_what_is_no_share_is_refused(wrong: float) -> None:
    with pytest.raises(RequestError, match="no share"):
        mean_corruption_accuracy(level(0.5) | {("snow", 2): wrong})
    with pytest.raises(RequestError, match="no share"):
        mce(level(0.5), level(0.5) | {("snow", 2): wrong})
    for cleans in ((wrong, 0.9), (0.9, wrong)):
        with pytest.raises(RequestError, match="no share"):
            relative_mce(level(0.5), level(0.5), *cleans)


def test_a_baseline_that_loses_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="the baseline loses nothing to fog"):
        mce(level(0.5), level(0.5, fog=1.0))
    with pytest.raises(RequestError, match="the baseline loses nothing to snow"):
        relative_mce(level(0.5), level(0.5, snow=0.9), 0.9, 0.9)


def test_they_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import robbench.evaluation.corruption_error"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
