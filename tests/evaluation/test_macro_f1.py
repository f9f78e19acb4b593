from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robbench.evaluation.macro_f1 import macro_f1
from robbench.evaluation.statistics import balanced, class_rates

Array = NDArray[Any]


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_it_is_the_mean_over_seeds_of_what_scikit_learn_gives(classes: int, seeds: int, n: int, seed: int) -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(classes, size=n), rng.integers(classes + 2, size=(seeds, n))
    found, seen = macro_f1(labels, predictions), np.unique(labels)
    theirs = [f1_score(labels, one, labels=seen, average="macro", zero_division=0.0) for one in predictions]
    assert found.value == pytest.approx(np.mean(theirs))
    assert found.n == n
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1


def mistaken(classes: int, each: int, wrong: int) -> tuple[Array, Array]:
    """As many images of each class, of which as many are predicted as the next."""
    labels = np.repeat(np.arange(classes), each)
    place = np.tile(np.arange(each), classes)
    return labels, np.where(place < wrong, (labels + 1) % classes, labels)


@pytest.mark.parametrize("wrong", [0, 2, 10, 50, 90])
def test_of_classes_alike_it_is_as_sure_as_balanced_accuracy(wrong: int) -> None:
    """Their F1 is then their recall, and what an image adds is that of a count."""
    labels, predictions = mistaken(4, 100, wrong)
    found = macro_f1(labels, predictions[None])
    recall = balanced(class_rates(labels == predictions, labels, 4))
    assert found.value == pytest.approx(recall.value)
    assert (found.low, found.high) == pytest.approx((recall.low, recall.high), abs=0.004)


def test_equal_seeds_are_as_one_and_others_surer() -> None:
    labels, predictions = mistaken(3, 100, 20)
    assert macro_f1(labels, np.stack([predictions] * 3)) == pytest.approx(macro_f1(labels, predictions[None]))
    others = np.stack(
        [predictions, *(np.concatenate([np.roll(part, 33 * by) for part in np.split(predictions, 3)]) for by in (1, 2))]
    )
    one, three = macro_f1(labels, predictions[None]), macro_f1(labels, others)
    assert None not in (one.low, one.high, three.low, three.high)
    assert (three.high or 0) - (three.low or 0) < 0.8 * ((one.high or 0) - (one.low or 0))


def test_classes_that_are_hardly_there_or_hardly_predicted_leave_no_interval() -> None:
    labels, predictions = mistaken(3, 5, 0)
    assert macro_f1(labels, predictions[None]).low is not None
    assert macro_f1(labels[1:], predictions[None, 1:]).low is None, "four images of a class"
    predictions[0] = 1
    assert macro_f1(labels, predictions[None]).low is None, "four predicted as a class"
    assert macro_f1(np.zeros(3, dtype=np.int64), np.ones((1, 3), dtype=np.int64)).value == 0
