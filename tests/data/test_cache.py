"""Decoded data sets are read once, kept, verified and refused where they are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from made_data import Made, raw
from resident import pixels

from robbench.core.errors import RequestError, StoreError
from robbench.data.cache import load
from robbench.data.dataset import Dataset, DecodedImages, Raw
from robbench.data.splits import split


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
        assert all(np.array_equal(pixels(each.images), pixels(raw((20, 20, 20)).images)) for each in found)
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
    image, labels, is_test = pixels(base.images).copy(), base.labels.copy(), base.is_test.copy()
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
    images = pixels(made.images).copy()
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
