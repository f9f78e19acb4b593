from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_checks import counts, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import Made, decoded

from robbench.core.errors import RequestError
from robbench.data.datasets import fashion_mnist
from robbench.data.datasets.cifar10 import CLASS_NAMES
from robbench.data.splits import apportion, split, stratified

# --------------------------------------------------------------------------------------------------------------- splits


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_splits_never_overlap_and_keep_every_class(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(20, 60), min_size=2, max_size=5)))
    tested = tuple(data.draw(st.integers(1, size // 2)) for size in sizes) if data.draw(st.booleans()) else None
    names = [f"c{i}" for i in range(len(sizes))]
    chosen = data.draw(st.one_of(st.just([]), st.lists(st.sampled_from(names), min_size=2, unique=True)))
    k = len(chosen) or len(sizes)
    each = st.lists(st.integers(1, 8), min_size=k, max_size=k).map(tuple)
    options: dict[str, object] = {"classes": tuple(chosen), "pooled": data.draw(st.booleans())}
    kind = data.draw(st.sampled_from(["plain", "counts", "shares", "fraction"]))
    if kind == "counts":
        options["train_counts"] = data.draw(each)
    if kind == "shares":
        options["train_shares"] = tuple(data.draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k)))
        options["train_least"] = 1
    if kind == "fraction":
        options["train_fraction"] = data.draw(st.floats(0.05, 1))
    if tested is None and data.draw(st.booleans()):
        options["test_counts"] = data.draw(each)
    dataset = Made.make({**options, "split_seed": data.draw(st.integers(0, 9)), "gallery": 3}, "here")
    made = decoded(sizes, tested)
    splits = split(dataset, made)

    parts = (splits.train, splits.validation, splits.test)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    for part in (*parts, splits.gallery):
        assert np.all(np.diff(part) > 0)
    for by_class in counts(splits):
        assert min(by_class) >= 1
    assert set(splits.gallery) <= set(splits.train)
    assert splits.counts(splits.gallery) == (min(3, *splits.counts(splits.train)),) * k
    assert splits.class_names == (tuple(chosen) or tuple(names))
    np.testing.assert_array_equal(
        [splits.class_names[label] for label in splits.labels[together]],
        [made.class_names[label] for label in made.labels[together]],
    )
    if tested is not None and not dataset.pooled:
        assert set(splits.test) == {i for i in np.flatnonzero(made.is_test) if splits.labels[i] >= 0}
    for option, part in (("train_counts", splits.train), ("test_counts", splits.test)):
        if option in options:
            assert splits.counts(part) == options[option]
    again = split(dataset, made)
    assert all(np.array_equal(a, b) for a, b in zip(parts, (again.train, again.validation, again.test), strict=True))


def test_shares_divide_every_class() -> None:
    assert counts(split(Made(), decoded((100, 200, 40)))) == ((55, 110, 22), (15, 30, 6), (30, 60, 12))


def test_the_publishers_test_images_are_the_test_split_unless_pooled() -> None:
    made = decoded((60, 60), (10, 10))
    dataset = Made(split=(45 / 60, 5 / 60, 10 / 60))
    kept = split(dataset, made)
    assert counts(kept) == ((45, 45), (5, 5), (10, 10))
    assert made.is_test[kept.test].all()
    pooled = split(replace(dataset, pooled=True), made)
    assert counts(pooled) == ((45, 45), (5, 5), (10, 10))
    assert made.is_test[pooled.train].any()


def test_the_imbalance_study_takes_its_counts_from_the_pool() -> None:
    dataset = preset("cifar10-imbalanced")
    tiny = replace(decoded((6000,) * 10, (1000,) * 10), class_names=CLASS_NAMES)
    splits = split(dataset, tiny)
    assert counts(splits) == ((4949, 466, 210), (500, 500, 500), (551, 51, 23))
    assert splits.class_names == ("automobile", "truck", "cat")
    assert (len(splits.train), len(splits.test)) == (5625, 625)


@pytest.mark.parametrize(
    ("name", "published", "trained", "validated"),
    [("fashion-mnist", 7000, 5400, 600), ("cifar10", 6000, 4500, 500)],
)
def test_a_long_tail_falls_a_hundredfold_and_is_judged_in_balance(
    name: str, published: int, trained: int, validated: int
) -> None:
    found = counts(split(preset(f"{name}-long-tail"), decoded((published,) * 10, (1000,) * 10)))
    # Cui et al., 2019: the largest class times mu^k, rounded down, where mu^9 = 1 / 100.
    tail = tuple(int(trained * 0.01 ** (k / 9) + 1e-6) for k in range(10))
    assert found == (tail, (validated,) * 10, (1000,) * 10)
    assert (tail[0], tail[-1]) == (trained, trained // 100)
    ratios = np.array(tail[:-1]) / tail[1:]
    np.testing.assert_allclose(ratios, 100 ** (1 / 9), rtol=0.02)


@pytest.mark.parametrize(
    ("name", "published", "trained", "validated", "names"),
    [
        ("fashion-mnist-three", 7000, 5400, 600, fashion_mnist.CLASS_NAMES),
        ("cifar10-three", 6000, 4500, 500, CLASS_NAMES),
    ],
)
def test_three_classes_in_the_proportions_of_the_study_are_judged_in_balance(
    name: str, published: int, trained: int, validated: int, names: tuple[str, ...]
) -> None:
    made = replace(decoded((published,) * 10, (1000,) * 10), class_names=names)
    found = counts(split(preset(name), made))
    assert found == ((trained, trained * 466 // 4949, trained * 210 // 4949), (validated,) * 3, (1000,) * 3)


def test_a_stratified_fifth_of_all_images() -> None:
    splits = split(replace(preset("cifar10"), pooled=True, split=(0.2, 0.1, 0.7)), decoded((6000,) * 10, (1000,) * 10))
    assert counts(splits) == ((1200,) * 10, (600,) * 10, (4200,) * 10)


def test_train_shares_keep_proportions_and_leave_validation_and_test_alone() -> None:
    made = decoded((180, 182, 181, 180))
    whole = split(Made(classes=("c0", "c1", "c2")), made)
    few = split(Made(train_shares=(1.0, 466 / 4949, 210 / 4949)), made)
    assert few.class_names == ("c0", "c1", "c2")
    most = counts(few)[0][0]
    assert most == 99
    assert counts(few)[0] == (most, most * 466 // 4949, 6)
    assert np.array_equal(few.test, whole.test)
    assert np.array_equal(few.validation, whole.validation)
    assert set(few.train) < set(whole.train)
    assert counts(split(Made(train_shares=(0.5, 0.25, 0.25, 0.5)), made))[0] == (49, 24, 24, 49)
    assert counts(split(Made(train_shares=(1.0, 1.0, 1.0)), made))[0] == (99, 99, 99)


def test_train_fraction_is_stratified_and_nested() -> None:
    made = decoded((200, 100))
    half, tenth = (split(Made(train_fraction=f), made) for f in (0.5, 0.1))
    assert counts(half) == ((55, 27), (30, 15), (60, 30)) or counts(half) == ((55, 28), (30, 15), (60, 30))
    assert set(tenth.train) < set(half.train)


def test_a_class_is_split_alike_whatever_other_classes_are_chosen() -> None:
    made = decoded((40, 50, 60))
    one, other = split(Made(classes=("c2", "c0")), made), split(Made(classes=("c1", "c2")), made)
    of_two = [set(each.test[made.labels[each.test] == 2]) for each in (one, other)]
    assert of_two[0] == of_two[1]


def test_another_seed_splits_otherwise() -> None:
    made = decoded((40, 40))
    assert not np.array_equal(split(Made(), made).test, split(Made(split_seed=1), made).test)


def test_taken_samples_have_new_labels_and_their_positions_as_ids() -> None:
    made = decoded((20, 20, 20))
    splits = split(Made(classes=("c2", "c0")), made)
    samples = splits.take(made, splits.test)
    assert samples.ids.tolist() == splits.test.tolist()
    assert samples.images.dtype == torch.uint8
    np.testing.assert_array_equal(samples.images.numpy(), made.images[splits.test])
    assert [("c2", "c0")[label] for label in samples.labels] == [made.class_names[c] for c in made.labels[splits.test]]
    samples.images.zero_()
    assert made.images[splits.test].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("c0", "c11")}, 'no class "c11"; did you mean "c1"'),
        ({"classes": ("c0", "c0")}, "twice"),
        ({"classes": ("c0",)}, "at least two"),
        ({"split": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"split": (0.7, 0.0, 0.3)}, "positive"),
        ({"train_shares": (1.0, 0.5), "classes": ("c0", "c1", "c2")}, "train_shares has 2 entries for 3"),
        ({"train_shares": (1.0, 1.5)}, r"must lie in \(0, 1\]"),
        ({"train_shares": (1.0, 0.0)}, "positive"),
        ({"train_shares": (1.0, 0.5), "train_least": 30}, "train_least = 30"),
        ({"train_counts": (5, 5), "train_shares": (1.0, 0.5)}, "cannot be combined"),
        ({"train_counts": (5, 5), "train_fraction": 0.5}, "cannot be combined"),
        ({"train_counts": (5, 0)}, "positive"),
        ({"train_counts": (5, 14)}, 'class "c1": 14 training .* 14 are left beside 6 test'),
        ({"test_counts": (5, 20)}, 'class "c1".* 0 are left beside 20 test'),
        ({"train_counts": (1, 1, 1, 1, 1)}, "5 classes are chosen of 4"),
        ({"train_fraction": 0.0}, "train_fraction"),
        ({"split_seed": -1}, "split_seed"),
        ({"gallery": 0}, "gallery"),
        ({"classes": ("c0", "c3")}, 'class "c3" has only 2 images'),
    ],
)
def test_what_cannot_be_split_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        split(Made.make(options, ""), decoded((20, 20, 20, 2)))


def test_a_class_without_enough_published_images_is_refused() -> None:
    with pytest.raises(RequestError, match='class "c1" has only 10 training and 0 test'):
        split(Made(), decoded((10, 10), (5, 0)))
    with pytest.raises(RequestError, match='class "c0": test_counts asks for 6 test images and there are 5'):
        split(Made(test_counts=(6, 1)), decoded((10, 10), (5, 5)))


# ------------------------------------------------------------------------------------------------------------- sampling


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_apportioned_parts_sum_up_and_are_near_their_quota(total: int, weights: list[float]) -> None:
    parts = apportion(total, weights)
    quota = total * np.array(weights) / sum(weights)
    assert parts.sum() == total
    assert parts.min() >= (1 if total >= len(weights) else 0)
    if quota.min() >= 1:
        assert np.all(np.abs(parts - quota) < 1 + 1e-9)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200), st.integers(0, 5))
def test_a_stratified_subsample_keeps_proportions(sizes: list[int], size: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = stratified(labels, size, seed)
    assert len(drawn) == min(size, len(labels))
    assert np.all(np.diff(drawn) > 0)
    found = np.bincount(labels[drawn], minlength=len(sizes))
    if size >= len(sizes):
        assert found.min() >= 1
        np.testing.assert_array_equal(found, apportion(len(drawn), sizes))
    np.testing.assert_array_equal(drawn, stratified(labels, size, seed))


def test_another_seed_draws_another_subsample() -> None:
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(stratified(labels, 20, 0), stratified(labels, 20, 1))
