from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_checks import counts
from PIL import Image
from resident import pixels

from robbench.core.corruption_kinds import EXTRA, MAIN
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data.dataset import DecodedImages, Raw
from robbench.data.datasets.cifar10 import CLASS_NAMES
from robbench.data.datasets.cifar10c import CIFAR10C, read_cifar10c
from robbench.data.splits import split

TOTAL = 50_000


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the published shapes, with holes for what no test looks at."""
    folder = tmp_path_factory.mktemp("data") / "CIFAR-10-C"
    folder.mkdir()
    images = np.lib.format.open_memmap(folder / "jpeg_compression.npy", "w+", np.uint8, (TOTAL, 32, 32, 3))
    images[30_000:40_000, 5, 7] = (11, 22, 33)
    images[30_000:40_000, 0, 0, 0] = np.arange(10_000) % 251
    images.flush()
    np.save(folder / "labels.npy", np.tile(np.arange(10_000) % 10, 5).astype(np.uint8))
    return folder


def small_cifar10(root: Path, per_class: int = 4) -> None:
    for part, level in (("train", 200), ("test", 100)):
        for name in CLASS_NAMES:
            (root / "cifar10" / part / name).mkdir(parents=True)
            for number in range(per_class):
                color = (level, number, 0)
                Image.new("RGB", (32, 32), color).save(root / "cifar10" / part / name / f"{number}.png")


def read(dataset: CIFAR10C, root: Path) -> Raw:
    return dataset.locate(root)[1]()


def test_images_and_labels_of_one_severity_are_read_as_they_are(arrays: Path) -> None:
    images, labels = read_cifar10c(arrays, "jpeg-compression", 4)
    assert images.shape == (10_000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert images[:, :, 5, 7].tolist() == [[11, 22, 33]] * 10_000
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(10_000) % 251)
    np.testing.assert_array_equal(labels, np.arange(10_000) % 10)
    assert not read_cifar10c(arrays, "jpeg-compression", 3)[0].any()
    assert not read_cifar10c(arrays, "jpeg-compression", 5)[0].any()


def test_training_images_are_those_of_cifar10(arrays: Path, tmp_path: Path) -> None:
    small_cifar10(tmp_path)
    (tmp_path / "CIFAR-10-C").symlink_to(arrays)
    dataset = CIFAR10C(kind="jpeg-compression", severity=4)
    raw = read(dataset, tmp_path)
    assert raw.class_names == CLASS_NAMES
    assert raw.images.shape == (10_040, 3, 32, 32)
    assert raw.is_test.sum() == 10_000
    assert set(pixels(raw.images)[~raw.is_test, 0, 0, 0].tolist()) == {200}
    assert np.all(pixels(raw.images)[raw.is_test, 2, 5, 7] == 33)
    splits = split(dataset, DecodedImages(raw.images, raw.labels, raw.class_names, raw.is_test, "", 0))
    train, validation, test = counts(splits)
    assert test == (1000,) * 10
    assert [a + b for a, b in zip(train, validation, strict=True)] == [4] * 10
    three = CIFAR10C(kind="jpeg-compression", severity=4, classes=("cat", "ship"), test_counts=(30, 20))
    decoded = DecodedImages(raw.images, raw.labels, raw.class_names, raw.is_test, "", 0)
    assert counts(split(three, decoded))[2] == (30, 20)


def test_the_stamp_changes_with_the_files(tmp_path: Path) -> None:
    small_cifar10(tmp_path)
    folder = tmp_path / "cifar10-c"
    folder.mkdir()
    for name in ("fog.npy", "snow.npy", "labels.npy"):
        (folder / name).write_bytes(b"1")
    stamps = [CIFAR10C(kind="fog").locate(tmp_path)[0]]
    (folder / "snow.npy").write_bytes(b"22")
    assert CIFAR10C(kind="fog").locate(tmp_path)[0] == stamps[0]
    for changed in (folder / "fog.npy", folder / "labels.npy", tmp_path / "cifar10" / "train" / "cat" / "0.png"):
        changed.write_bytes(b"333")
        stamps.append(CIFAR10C(kind="fog").locate(tmp_path)[0])
    assert len(set(stamps)) == 4


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    small_cifar10(tmp_path)
    with pytest.raises(RequestError, match=r"not found: no fog\.npy and labels\.npy in .*CIFAR-10-C.*--data-dir"):
        CIFAR10C(kind="fog").locate(tmp_path)
    (tmp_path / "CIFAR-10-C").mkdir()
    for name in ("snow.npy", "zoom_blur.npy", "other.npy"):
        (tmp_path / "CIFAR-10-C" / name).touch()
    lacking = r"CIFAR-10-C lacks fog\.npy and labels\.npy; of CIFAR-10-C there are zoom_blur\.npy, snow\.npy$"
    with pytest.raises(RequestError, match=lacking):
        CIFAR10C(kind="fog").locate(tmp_path)
    with pytest.raises(RequestError, match=r"lacks labels\.npy;"):
        CIFAR10C(kind="snow").locate(tmp_path)
    with pytest.raises(RequestError, match=r"fog\.npy cannot be read"):
        read_cifar10c(tmp_path / "CIFAR-10-C", "fog", 1)


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (np.zeros((50, 32, 32, 3), np.uint8), None, r"fog\.npy has the shape \(50, 32, 32, 3\)"),
        (np.zeros((TOTAL, 1), np.uint8), None, r"fog\.npy has the shape"),
        (None, np.zeros(10_000, np.uint8), r"labels\.npy has the shape \(10000,\), not \(50000,\)"),
        (None, np.full(TOTAL, 10), r"labels\.npy does not hold labels from 0 to 9"),
        (None, np.full(TOTAL, -1), r"labels\.npy does not hold labels"),
        (None, np.zeros(TOTAL), r"labels\.npy does not hold labels"),
    ],
)
def test_what_is_not_as_published_is_refused(
    images: np.ndarray | None, labels: np.ndarray | None, fault: str, arrays: Path, tmp_path: Path
) -> None:
    for name, array, usual in (("fog.npy", images, "jpeg_compression.npy"), ("labels.npy", labels, "labels.npy")):
        if array is None:
            (tmp_path / name).symlink_to(arrays / usual)
        else:
            np.save(tmp_path / name, array)
    with pytest.raises(RequestError, match=fault):
        read_cifar10c(tmp_path, "fog", 1)


def test_other_numbers_and_damaged_files_are_refused(arrays: Path, tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "fog.npy", "w+", np.float16, (TOTAL, 32, 32, 3)).flush()
    (tmp_path / "labels.npy").symlink_to(arrays / "labels.npy")
    with pytest.raises(RequestError, match=r"fog\.npy holds float16, not uint8"):
        read_cifar10c(tmp_path, "fog", 1)
    whole = (arrays / "labels.npy").read_bytes()
    for damage in (b"", b"<html>", whole[:1000]):
        (tmp_path / "fog.npy").write_bytes(damage)
        with pytest.raises(RequestError, match=r"fog\.npy cannot be read as an array"):
            read_cifar10c(tmp_path, "fog", 1)


@pytest.mark.parametrize("wrong", [{"kind": "rain"}, {"severity": 6}, {"severity": 0}, {"pooled": True}])
def test_options_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        CIFAR10C(**wrong)  # type: ignore[arg-type]


def test_every_kind_can_be_asked_for_by_name() -> None:
    entry = Registry(installed=False).entry("dataset", "cifar10-c")
    for kind in (*MAIN, *EXTRA):
        assert entry.cls.make({"kind": kind, "severity": "2"}, "test") == CIFAR10C(kind=kind, severity=2)
