from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robbench.data import Splits, apportion, load, split, stratified
from robbench.datasets import cifar10, fashion_mnist
from robbench.datasets._files import decode_image
from robbench.datasets.cifar10 import CIFAR10, CLASS_NAMES
from robbench.datasets.digits import Digits
from robbench.datasets.fashion_mnist import FashionMNIST
from robbench.datasets.image_folder import ImageFolder
from robbench.errors import RequestError, StoreError
from robbench.registry import Registry
from robbench.sources import Dataset, Raw, Source


@dataclass(frozen=True)
class Made(Dataset):
    """Images made from their position in the source."""

    sizes: tuple[int, ...] = (20, 20, 20)
    stamp: str = ""

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        def read() -> Raw:
            if data_dir is not None:
                (data_dir / "reads").open("a").write("x")
            return raw(self.sizes)

        return self.stamp, read


def raw(sizes: tuple[int, ...], tested: tuple[int, ...] | None = None) -> Raw:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.arange(len(labels), dtype="<u4").view(np.uint8).reshape(-1, 4, 1, 1)[:, :3].copy()
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label, count in enumerate(tested or ()):
        is_test[np.flatnonzero(labels == label)[:count]] = True
    return Raw(images, labels, tuple(f"c{label}" for label in range(len(sizes))), is_test)


def source(sizes: tuple[int, ...], tested: tuple[int, ...] | None = None) -> Source:
    made = raw(sizes, tested)
    return Source(made.images, made.labels, made.class_names, made.is_test, "", 0)


def preset(name: str) -> Dataset:
    entry = Registry(installed=False).entry("dataset", name)
    dataset = entry.cls.make(entry.mark.preset, name)
    assert isinstance(dataset, Dataset)
    return dataset


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
    plain = split(Made(), Source(made.images, made.labels, made.class_names, made.is_test, "", 0))
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
    code = "import sys, robbench.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------------- splits


def counts(splits: Splits) -> tuple[tuple[int, ...], ...]:
    return tuple(splits.counts(part) for part in (splits.train, splits.validation, splits.test))


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
    made = source(sizes, tested)
    splits = split(dataset, made)

    parts = (splits.train, splits.validation, splits.test)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    for part in (*parts, splits.gallery):
        assert np.all(np.diff(part) > 0)
    for part in counts(splits):
        assert min(part) >= 1
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
    assert counts(split(Made(), source((100, 200, 40)))) == ((55, 110, 22), (15, 30, 6), (30, 60, 12))


def test_the_publishers_test_images_are_the_test_split_unless_pooled() -> None:
    made = source((60, 60), (10, 10))
    dataset = Made(split=(45 / 60, 5 / 60, 10 / 60))
    kept = split(dataset, made)
    assert counts(kept) == ((45, 45), (5, 5), (10, 10))
    assert made.is_test[kept.test].all()
    pooled = split(replace(dataset, pooled=True), made)
    assert counts(pooled) == ((45, 45), (5, 5), (10, 10))
    assert made.is_test[pooled.train].any()


def test_the_imbalance_study_takes_its_counts_from_the_pool() -> None:
    dataset = preset("cifar10-imbalanced")
    tiny = replace(source((6000,) * 10, (1000,) * 10), class_names=CLASS_NAMES)
    splits = split(dataset, tiny)
    assert counts(splits) == ((4949, 466, 210), (500, 500, 500), (551, 51, 23))
    assert splits.class_names == ("automobile", "truck", "cat")
    assert (len(splits.train), len(splits.test)) == (5625, 625)


def test_a_stratified_fifth_of_all_images() -> None:
    splits = split(replace(preset("cifar10"), pooled=True, split=(0.2, 0.1, 0.7)), source((6000,) * 10, (1000,) * 10))
    assert counts(splits) == ((1200,) * 10, (600,) * 10, (4200,) * 10)


def test_train_shares_keep_proportions_and_leave_validation_and_test_alone() -> None:
    made = source((180, 182, 181, 180))
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
    made = source((200, 100))
    half, tenth = (split(Made(train_fraction=f), made) for f in (0.5, 0.1))
    assert counts(half) == ((55, 27), (30, 15), (60, 30)) or counts(half) == ((55, 28), (30, 15), (60, 30))
    assert set(tenth.train) < set(half.train)


def test_a_class_is_split_alike_whatever_other_classes_are_chosen() -> None:
    made = source((40, 50, 60))
    one, other = split(Made(classes=("c2", "c0")), made), split(Made(classes=("c1", "c2")), made)
    of_two = [set(each.test[made.labels[each.test] == 2]) for each in (one, other)]
    assert of_two[0] == of_two[1]


def test_another_seed_splits_otherwise() -> None:
    made = source((40, 40))
    assert not np.array_equal(split(Made(), made).test, split(Made(split_seed=1), made).test)


def test_taken_samples_have_new_labels_and_their_positions_as_ids() -> None:
    made = source((20, 20, 20))
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
        split(Made.make(options, ""), source((20, 20, 20, 2)))


def test_a_class_without_enough_published_images_is_refused() -> None:
    with pytest.raises(RequestError, match='class "c1" has only 10 training and 0 test'):
        split(Made(), source((10, 10), (5, 0)))
    with pytest.raises(RequestError, match='class "c0": test_counts asks for 6 test images and there are 5'):
        split(Made(test_counts=(6, 1)), source((10, 10), (5, 5)))


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


# --------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn_scaled_up(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    found = load(Digits(), None, tmp_path)
    bunch = load_digits()
    assert found.images.shape == (1797, 3, 32, 32)
    np.testing.assert_array_equal(found.labels, bunch.target)
    assert np.all(found.images == found.images[:, :1])
    for index in range(0, 1797, 100):
        gray = Image.fromarray((bunch.images[index] * 255 / 16).astype(np.float32))
        wanted = np.asarray(gray.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(found.images[index, 0] - wanted).max() <= 0.501
    splits = split(Digits(), found)
    assert min(splits.counts(splits.test)) >= 50
    assert found.images.max() == 255


def test_imbalanced_digits_are_balanced_where_they_are_judged(tmp_path: Path) -> None:
    dataset = preset("digits-imbalanced")
    splits = split(dataset, load(dataset, None, tmp_path))
    train, validation, test = counts(splits)
    assert len(train) == 3
    assert train[0] > 90
    assert train[1] == train[0] * 466 // 4949
    assert train[2] == 6
    assert min(test) >= 50
    assert max(test) - min(test) <= 4
    assert max(validation) - min(validation) <= 2


def test_every_data_set_says_how_it_is_attacked_and_trained() -> None:
    entries = Registry(installed=False).entries("dataset")
    for name in ("digits", "cifar10", "fashion-mnist", "image-folder"):
        assert {name, f"{name}-imbalanced"} <= set(entries)
    for name in entries:
        dataset = preset(name)
        assert {"linf", "l2", "l1"} <= set(dataset.eps)
        for sizes in dataset.eps.values():
            assert sizes.reference in sizes.values
            assert list(sizes.values) == sorted(set(sizes.values))
        assert "architecture" in dataset.recipe


# -------------------------------------------------------------------------------------------------------------- folders


def write(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def folders(root: Path, names: tuple[str, ...] = ("ape", "bee"), count: int = 4) -> Path:
    for name in names:
        for number in range(count):
            write(root / name / f"{number}.png", (number, len(name), 0))
    return root


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    folders(tmp_path / "in", ("bee", "ape"))
    write(tmp_path / "in" / "ape" / "deeper" / "x.PNG", (77, 0, 0))
    (tmp_path / "in" / "ape" / "notes.txt").write_text("no image")
    (tmp_path / "in" / ".hidden").mkdir()
    found = load(ImageFolder(size=8), tmp_path / "in", tmp_path / "cache")
    assert found.class_names == ("ape", "bee")
    assert np.bincount(found.labels).tolist() == [5, 4]
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 77, 0, 1, 2, 3]
    assert not found.is_test.any()
    named = load(ImageFolder(path=str(tmp_path / "in"), size=8), None, tmp_path / "cache")
    assert named.fingerprint == found.fingerprint
    write(tmp_path / "in" / "bee" / "0.png", (200, 0, 0))
    assert load(ImageFolder(size=8), tmp_path / "in", tmp_path / "cache").fingerprint != found.fingerprint


def test_train_and_test_folders(tmp_path: Path) -> None:
    folders(tmp_path / "train", count=6)
    folders(tmp_path / "test", count=2)
    found = load(ImageFolder(size=8), tmp_path, tmp_path / "cache")
    assert found.is_test.sum() == 4
    assert counts(split(ImageFolder(), found)) == ((5, 5), (1, 1), (2, 2))


def test_any_mode_and_size_becomes_square_and_colored(tmp_path: Path) -> None:
    stripes = np.zeros((10, 30), np.uint8)
    stripes[:, 10:20] = 200
    images = {
        "gray.png": (Image.fromarray(stripes), 200),
        "deep.png": (Image.fromarray(stripes.astype(np.uint16) << 8), 200),
        "bits.png": (Image.fromarray(stripes > 0), 255),
        "alpha.png": (Image.fromarray(stripes).convert("RGBA"), 200),
        "palette.gif": (Image.fromarray(stripes).convert("P"), 200),
        "cmyk.tif": (Image.fromarray(stripes).convert("RGB").convert("CMYK"), 200),
    }
    for name, (image, level) in images.items():
        image.save(tmp_path / name)
        found = decode_image(tmp_path / name, 10)
        assert found.shape == (3, 10, 10), name
        assert found.dtype == np.uint8
        assert np.all(found == level), name
    assert decode_image(tmp_path / "gray.png", 20).shape == (3, 20, 20)


def test_a_photograph_is_turned_as_the_camera_noted(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "turned.png", 8).transpose(1, 2, 0), pixels[::-1])


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    folders(tmp_path / "in")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    bad = tmp_path / "in" / "ape" / "bad.jpg"
    Image.fromarray(noise).save(bad)
    data = bad.read_bytes()
    bad.write_bytes({"cut": data[: len(data) // 2], "text": b"<html>", "empty": b""}[damage])
    with pytest.raises(RequestError, match=r"ape/bad\.jpg cannot be read as an image"):
        load(ImageFolder(), tmp_path / "in", tmp_path / "cache")


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    def refused(root: Path | None, dataset: ImageFolder | None = None) -> str:
        with pytest.raises(RequestError) as error:
            (dataset or ImageFolder()).locate(root)
        return str(error.value)

    assert "--data-dir" in refused(None)
    assert f"{tmp_path}/nowhere is not a folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty holds no folders" in refused(tmp_path / "empty")
    (tmp_path / "bare" / "ape").mkdir(parents=True)
    assert f"{tmp_path}/bare holds no images" in refused(tmp_path / "bare")
    folders(tmp_path / "few", ("ape", "bee", "cow"))
    for number in (0, 1):
        (tmp_path / "few" / "bee" / f"{number}.png").unlink()
    assert f"{tmp_path}/few/bee holds only 2 images" in refused(tmp_path / "few")
    ImageFolder(classes=("ape", "cow")).locate(tmp_path / "few")
    folders(tmp_path / "odd" / "train", ("ape", "bee"))
    folders(tmp_path / "odd" / "test", ("ape", "bees"))
    assert 'class "bee" is in only one of' in refused(tmp_path / "odd")


# ---------------------------------------------------------------------------------------------------- downloadable data


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def offline(target: Path) -> None:
        raise OSError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    monkeypatch.setattr(cifar10, "_fetch", offline)
    monkeypatch.setattr(fashion_mnist, "_fetch", offline)
    monkeypatch.setattr(fashion_mnist, "_SYSTEM", tmp_path / "system")
    return tmp_path


@pytest.mark.parametrize("dataset", [CIFAR10(), FashionMNIST()])
def test_data_that_is_nowhere_is_one_line_that_says_what_to_do(
    dataset: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBBENCH_DATA", str(home / "variable"))
    with pytest.raises(RequestError) as error:
        dataset.locate(home / "given")
    message = str(error.value)
    for part in (f"{home}/given", f"{home}/variable", "no network", "--data-dir", "ROBBENCH_DATA"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_from_folders(below: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(CLASS_NAMES):
        write(home / "data" / below / "train" / name / "a.png", (number, 1, 2), (32, 32))
        write(home / "data" / below / "test" / name / "a.png", (number, 3, 4), (32, 32))
    monkeypatch.setenv("ROBBENCH_DATA", str(home / "data"))
    found = load(CIFAR10(), None, home / "cache")
    assert found.class_names == CLASS_NAMES
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist() == [*range(10)] * 2
    assert found.is_test.tolist() == [False] * 10 + [True] * 10


def batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """Two published batches of 20 images, with their checksums where torchvision looks for them."""
    from torchvision.datasets import CIFAR10 as Torchvision

    folder.mkdir(parents=True)
    flat = np.random.default_rng(0).integers(0, 256, (40, 3072), dtype=np.uint8)
    labels = [*range(10)] * 4
    files = {
        "data_batch_1": {"data": flat[:20], "labels": labels[:20]},
        "test_batch": {"data": flat[20:], "labels": labels[20:]},
        "batches.meta": {"label_names": list(CLASS_NAMES)},
    }
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(Torchvision, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(Torchvision, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(Torchvision, "meta", meta)
    return flat.reshape(-1, 3, 32, 32), labels


def test_cifar10_from_published_batches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batches(home / "data" / "cifar-10-batches-py", monkeypatch)
    found = load(CIFAR10(), home / "data", home / "cache")
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == labels
    assert found.is_test.tolist() == [False] * 20 + [True] * 20


def test_cifar10_is_downloaded_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = batches(home / "web" / "cifar-10-batches-py", monkeypatch)
    monkeypatch.setattr(cifar10, "_fetch", lambda target: shutil.copytree(home / "web", target, dirs_exist_ok=True))
    np.testing.assert_array_equal(load(CIFAR10(), None, home / "cache").images, images)
    monkeypatch.setattr(cifar10, "_fetch", pytest.fail)
    assert load(CIFAR10(), None, home / "cache").labels.shape == (40,)


def test_damaged_batches_are_named_and_never_unpickled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches(home / "data" / "cifar-10-batches-py", monkeypatch)

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (home / "pwned",)  # type: ignore[return-value]

    (home / "data" / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match="cifar-10-batches-py is not the published CIFAR-10, or damaged"):
        load(CIFAR10(), home / "data", home / "cache")
    assert not (home / "pwned").exists()


@pytest.fixture(scope="module")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = os.environ.get("ROBBENCH_DATA")
    if root is None or not any((Path(root) / name).exists() for name in ("cifar10", "cifar-10-batches-py", "train")):
        pytest.skip("ROBBENCH_DATA leads to no CIFAR-10")
    return load(CIFAR10(), None, tmp_path_factory.mktemp("cache"))


def test_real_cifar10_is_whole(real_cifar10: Source) -> None:
    assert real_cifar10.images.shape == (60000, 3, 32, 32)
    assert np.bincount(real_cifar10.labels).tolist() == [6000] * 10
    assert np.bincount(real_cifar10.labels[real_cifar10.is_test]).tolist() == [1000] * 10
    # Published means of the training images per channel: 0.4914, 0.4822, 0.4465.
    mean = real_cifar10.images[~real_cifar10.is_test].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)
    splits = split(CIFAR10(), real_cifar10)
    assert counts(splits) == ((4500,) * 10, (500,) * 10, (1000,) * 10)
    assert splits.counts(splits.gallery) == (200,) * 10


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def fashion(folder: Path, compressed: bool) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.repeat(np.arange(10, dtype=np.uint8), 6)
    for name, part in (("train", slice(0, None, 2)), ("t10k", slice(1, None, 2))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            data = idx(array)
            path = folder / f"{name}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(data) if compressed else data)
    order = np.r_[0:60:2, 1:60:2]
    return images[order], labels[order]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", ["given", "given/fashion-mnist", "given/FashionMNIST/raw", "system"])
def test_fashion_mnist_is_read_wherever_it_lies(compressed: bool, place: str, home: Path) -> None:
    images, labels = fashion(home / place, compressed)
    found = load(FashionMNIST(), home / "given", home / "cache")
    assert found.images.shape == (60, 3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(found.images[:, channel, 2:30, 2:30], images)
    assert found.images.sum() == 3 * images.sum(dtype=np.int64)
    assert found.labels.tolist() == labels.tolist()
    assert found.is_test.tolist() == [False] * 30 + [True] * 30
    assert found.class_names[6] == "Shirt"


@pytest.mark.parametrize("damage", ["cut", "cut gz", "other", "fewer"])
def test_damaged_idx_files_are_named(damage: str, home: Path) -> None:
    fashion(home / "data", compressed=damage == "cut gz")
    name = "t10k-images-idx3-ubyte" + (".gz" if damage == "cut gz" else "")
    path = home / "data" / name
    data = path.read_bytes()
    other = np.zeros((7, 28, 28), np.uint8)
    path.write_bytes({"other": b"<html>", "fewer": idx(other)}.get(damage, data[: len(data) // 2]))
    with pytest.raises(RequestError, match=name):
        load(FashionMNIST(), home / "data", home / "cache")
