"""Data sets that do not fit memory: indexed once, decoded when asked for, noticed when they change."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robbench.core.errors import RequestError
from robbench.data import lazy_images
from robbench.data.cache import check, load, locate
from robbench.data.dataset import DecodedImages
from robbench.data.datasets import _files
from robbench.data.datasets.image_folder import ImageFolder
from robbench.data.lazy_images import LazyImages
from robbench.data.splits import split

SIZE = 8
CLASSES = ("ape", "bée", "cow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several formats, sizes, modes and orientations; the last of a class is the first of the next one."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(CLASSES):
        (tmp_path / "in" / name / "deeper").mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (SIZE + 3 * number, SIZE + 5, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            exif = Image.Exif()
            exif[0x0112] = 1 + number
            target = tmp_path / "in" / name / ("deeper" * (number % 2))
            if number < 3:
                image.save(target / f"é {number}.jpg", exif=exif)
            elif number == 3:
                image.convert("L").save(target / f"{number}.png")
            elif number == 4:
                image.save(target / f"{number}.gif", save_all=True, append_images=[image.rotate(90)])
            else:
                image.convert("RGBA").save(target / f"{number}.webp", lossless=True)
        if place:
            shutil.copy(tmp_path / "in" / CLASSES[0] / "4.gif", tmp_path / "in" / name / "same.gif")
    return tmp_path / "in"


def read(root: Path, cache: str = "cache", size: int = SIZE) -> DecodedImages:
    return load(ImageFolder(size=size), root, root.parent / cache)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_images, "RESIDENT", 0)


def test_images_are_those_of_a_small_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = read(folder)
    assert isinstance(small.images, np.ndarray)
    monkeypatch.setattr(lazy_images, "RESIDENT", 0)
    for _ in ("indexed", "read from the index"):
        found = read(folder)
        assert isinstance(found.images, LazyImages)
        assert found.images.shape == small.images.shape
        for index in (np.arange(len(small.labels)), np.array([5, 0, 5, 17]), np.zeros(0, np.int64)):
            np.testing.assert_array_equal(found.images[index], small.images[index])
        np.testing.assert_array_equal(found.images[3], small.images[3])
        np.testing.assert_array_equal(found.labels, small.labels)
        np.testing.assert_array_equal(found.files, small.files)
        assert (found.class_names, found.remarks) == (small.class_names, small.remarks)
        assert found.duplicates == small.duplicates == 2
        assert found.fingerprint != small.fingerprint
        for dataset in (ImageFolder(size=SIZE), ImageFolder(size=SIZE, split=(0.0, 0.0, 1.0))):
            ours, theirs = split(dataset, found), split(dataset, small)
            assert ours.crossing == theirs.crossing
            np.testing.assert_array_equal(ours.test, theirs.test)
            samples, wanted = ours.stored(found, ours.test), theirs.take(small, theirs.test)
            assert not hasattr(samples, "images"), "nothing is decoded before it is asked for"
            assert samples.ids.tolist() == wanted.ids.tolist()


def test_the_second_time_no_file_is_opened(folder: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(folder)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(_files, "indexed", refuse)
    again = read(folder)
    assert again.fingerprint == first.fingerprint
    assert check(locate(ImageFolder(size=SIZE), folder), folder.parent / "cache")
    with pytest.raises(RequestError, match="read again"):
        read(folder, size=SIZE + 1)


def test_the_fingerprint_is_that_of_contents_wherever_they_lie(folder: Path, large: None) -> None:
    before = read(folder)
    moved = folder.rename(folder.parent / "moved")
    again = read(moved)
    assert again.fingerprint == before.fingerprint
    np.testing.assert_array_equal(again.images[np.arange(3)], read(moved, "other").images[np.arange(3)])
    assert read(moved, size=SIZE + 1).fingerprint != before.fingerprint
    (moved / CLASSES[0] / "4.gif").rename(moved / CLASSES[1] / "4b.gif")
    assert read(moved).fingerprint != before.fingerprint, "an image of another class"


def test_an_edited_file_is_noticed(folder: Path, large: None) -> None:
    before = read(folder)
    file = folder / CLASSES[1] / "4.gif"
    at = int(np.flatnonzero(before.files == f"{CLASSES[1]}/4.gif")[0])
    shown = before.images[at]
    Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(file)
    with pytest.raises(RequestError, match=r"4\.gif was changed after its data set was indexed; run again"):
        before.images[np.array([0, at])]
    assert before.images[0].shape == (3, SIZE, SIZE), "others can still be read"
    after = read(folder)
    assert after.fingerprint != before.fingerprint
    assert not np.array_equal(after.images[at], shown)
    file.unlink()
    with pytest.raises(RequestError, match=r"4\.gif cannot be read any more"):
        after.images[at]
    assert len(read(folder).labels) == len(before.labels) - 1


def test_damage_is_told_by_name(folder: Path, large: None) -> None:
    whole = folder / CLASSES[0] / "é 0.jpg"
    content = whole.read_bytes()
    whole.write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"é 0\.jpg"):
        read(folder)
    whole.write_bytes(content[:-60])
    found = read(folder)  # its header is whole
    at = int(np.flatnonzero(found.files == f"{CLASSES[0]}/é 0.jpg")[0])
    with pytest.raises(RequestError, match=r"é 0\.jpg cannot be read as an image .*truncated"):
        found.images[at]


@pytest.mark.parametrize("name", ["hashes.npy", "paths.npy", "rows.npy", "labels.npy"])
def test_a_damaged_index_is_made_again(folder: Path, large: None, name: str) -> None:
    before = read(folder)
    [entry] = (folder.parent / "cache").iterdir()
    data = bytearray((entry / name).read_bytes())
    data[-1] ^= 1
    (entry / name).write_bytes(data)
    after = read(folder)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.images[np.arange(4)], read(folder, "other").images[np.arange(4)])


def test_workers_are_handed_the_index_by_name(folder: Path, large: None) -> None:
    found = read(folder)
    packed = pickle.dumps(found)
    again = pickle.loads(packed)
    assert isinstance(again.images.hashes, np.memmap)
    np.testing.assert_array_equal(again.images[np.array([2, 1])], found.images[np.array([2, 1])])
    assert isinstance(found.images, LazyImages)
    assert found.images.hashes.tobytes() not in packed


def test_names_that_are_no_text_are_found_again(folder: Path, large: None) -> None:
    odd = os.fsencode(folder / CLASSES[0]) + b"/\xe9.png"
    try:
        with open(odd, "wb") as file:
            Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(file, "PNG")
    except OSError:
        pytest.skip("names must be text here")
    found = read(folder)
    at = int(np.flatnonzero(found.files == f"{CLASSES[0]}/\\xe9.png")[0])
    assert found.images[at][:, 0, 0].tolist() == [1, 2, 3]
