from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_checks import counts, preset
from hypothesis import given, settings
from hypothesis import strategies as st

from robbench.core.errors import RequestError, StoreError
from robbench.data.cache import load
from robbench.data.dataset import Dataset, DecodedImages, Raw
from robbench.data.datasets import fashion_mnist
from robbench.data.datasets.cifar10 import CLASS_NAMES
from robbench.data.splits import apportion, split, stratified


@dataclass(frozen=True)
class Made(Dataset):
    """Images made from their position."""

    sizes: tuple[int, ...] = (20, 20, 20)
    stamp: str = ""

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        def read() -> Raw:
            if data_dir is not None:
                with (data_dir / "reads").open("a") as file:
                    file.write("x")
            return raw(self.sizes)

        return self.stamp, read


def raw(sizes: tuple[int, ...], tested: tuple[int, ...] | None = None) -> Raw:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.arange(len(labels), dtype="<u4").view(np.uint8).reshape(-1, 4, 1, 1)[:, :3].copy()
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label, count in enumerate(tested or ()):
        is_test[np.flatnonzero(labels == label)[:count]] = True
    return Raw(images, labels, tuple(f"c{label}" for label in range(len(sizes))), is_test)


def decoded(sizes: tuple[int, ...], tested: tuple[int, ...] | None = None) -> DecodedImages:
    made = raw(sizes, tested)
    return DecodedImages(made.images, made.labels, made.class_names, made.is_test, "", 0)


# ---------------------------------------------------------------------------------------------------------------- cache


def test_a_data_set_is_read_once_and_comes_back_as_it_was(tmp_path: Path) -> None:
    first = load(Made(), tmp_path, tmp_path / "cache")
    again = load(Made(split_seed=3, classes=("c1", "c2")), tmp_path, tmp_path / "cache")
    assert (tmp_path / "reads").read_text() == "x"
    wanted = raw((20, 20, 20))
    for found in (first, again):
        assert isinstance(found.images, np.memmap)
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        np.testing.assert_array_equal(found.is_test, wanted.is_test)
        assert found.class_names == wanted.class_names
        assert found.fingerprint == first.fingerprint


@pytest.mark.parametrize("other", [Made(stamp="new"), Made(sizes=(21, 20, 20))])
def test_changed_files_and_other_ways_to_read_are_read_anew(other: Made, tmp_path: Path) -> None:
    load(Made(), tmp_path, tmp_path / "cache")
    found = load(other, tmp_path, tmp_path / "cache")
    assert (tmp_path / "reads").read_text() == "xx"
    assert len(found.labels) == sum(other.sizes)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "is_test.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_entry_is_made_again(name: str, damage: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = load(Made(), tmp_path, cache)
    [entry] = cache.iterdir()
    data = (entry / name).read_bytes()
    (entry / name).unlink()
    if damage != "gone":
        (entry / name).write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    again = load(Made(), tmp_path, cache)
    assert (tmp_path / "reads").read_text() == "xx"
    assert again.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(again.images, raw((20, 20, 20)).images)
    assert list(cache.iterdir()) == [entry]


def test_many_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    for damaged in (False, True):
        if damaged:
            [entry] = (tmp_path / "cache").iterdir()
            (entry / "images.npy").write_bytes(b"")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: load(Made(), None, tmp_path / "cache"), range(32)))
        assert len({each.fingerprint for each in found}) == 1
        assert all(np.array_equal(each.images, raw((20, 20, 20)).images) for each in found)
        assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError, match=r"^decoded images cannot be kept in .*cache: [^\n]*$"):
        load(Made(), None, tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((3, 32, 32), np.uint8)}, "shape"),
        ({"labels": np.array([0, 1, 2])}, "indices"),
        ({"is_test": np.zeros(2, np.bool_)}, "as many"),
        ({"class_names": ("a", "a")}, "differ"),
    ],
)
def test_what_is_no_data_set_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    whole = Raw(np.zeros((3, 3, 4, 4), np.uint8), np.array([0, 1, 1]), ("a", "b"), np.zeros(3, np.bool_))

    @dataclass(frozen=True)
    class Broken(Dataset):
        def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
            return "", lambda: replace(whole, **change)  # type: ignore[arg-type]

    with pytest.raises(RequestError, match=message):
        load(Broken(), None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fingerprint_depends_on_images_labels_names_and_test_marks(tmp_path: Path) -> None:
    base = raw((5, 5))
    image, labels, is_test = base.images.copy(), base.labels.copy(), base.is_test.copy()
    image[0, 0, 0, 0] += 1
    labels[0] = 1
    is_test[0] = True
    variants = [
        base,
        replace(base, images=image),
        replace(base, labels=labels),
        replace(base, is_test=is_test),
        replace(base, class_names=("c0", "other")),
    ]

    @dataclass(frozen=True)
    class Variant(Dataset):
        number: int = 0

        def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
            return "", lambda: variants[self.number]

    prints = [load(Variant(number=i), None, tmp_path).fingerprint for i in range(len(variants))]
    assert len(set(prints)) == len(variants)
    assert all(len(each) == 64 for each in prints)


def test_equal_images_are_counted_and_those_that_cross_the_split_too(tmp_path: Path) -> None:
    made = raw((10, 10))
    plain = split(Made(), DecodedImages(made.images, made.labels, made.class_names, made.is_test, "", 0))
    assert plain.crossing == 0
    images = made.images.copy()
    images[plain.test[0]] = images[plain.train[0]]
    images[plain.test[1]] = images[plain.validation[0]]
    images[plain.train[-1]] = images[plain.train[-2]]  # equal, and on the same side

    @dataclass(frozen=True)
    class Doubled(Dataset):
        def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
            return "", lambda: replace(made, images=images)

    found = load(Doubled(), None, tmp_path)
    assert found.duplicates == 3
    assert split(Made(), found).crossing == 2


def test_planning_needs_no_torch() -> None:
    code = "import sys, robbench.data.splits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
