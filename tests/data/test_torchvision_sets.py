"""Public data sets by name: read where they lie, and otherwise downloaded or refused in one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from resident import pixels

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data.cache import load
from robbench.data.datasets.torchvision_sets import _COLOR, _GRAY, HandwrittenCharacters, Photographs
from robbench.planning.component_spec import choose


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data but what a test writes, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)

    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """A file in the idx format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes())


def mnist(root: Path, kind: str = "MNIST") -> NDArray[np.uint8]:
    """Twelve images to train on and six to test on, as MNIST's files hold them."""
    images = np.random.default_rng(0).integers(0, 256, (18, 28, 28), dtype=np.uint8)
    labels = (np.arange(18) % 3).astype(np.uint8)
    for part, rows in (("train", slice(0, 12)), ("t10k", slice(12, 18))):
        write_idx(root / kind / "raw" / f"{part}-images-idx3-ubyte", images[rows])
        write_idx(root / kind / "raw" / f"{part}-labels-idx1-ubyte", labels[rows])
    return images


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_gray_stays_gray_at_its_own_size(name: str, tmp_path: Path) -> None:
    images = mnist(tmp_path / "in", name.upper())
    choice = choose(Registry(), "dataset", name, "here")
    found = load(choice.component, tmp_path / "in", tmp_path / "cache")
    assert found.images.shape == (18, 1, 28, 28)
    np.testing.assert_array_equal(pixels(found.images)[:, 0], images)
    assert found.is_test.tolist() == [False] * 12 + [True] * 6
    assert found.labels.tolist() == [0, 1, 2] * 6
    assert len(found.class_names) == 3


def test_traffic_signs_are_scaled_and_keep_the_publishers_test_images(tmp_path: Path) -> None:
    root = tmp_path / "in" / "gtsrb"
    rng = np.random.default_rng(1)
    for label in range(3):
        folder = root / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for number in range(4):
            size = (30 + number, 40 + label)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.ppm")
    tests = root / "GTSRB" / "Final_Test" / "Images"
    tests.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(3):
        Image.new("RGB", (50, 40), (number, 0, 0)).save(tests / f"{number:05}.ppm")
        lines.append(f"{number:05}.ppm;50;40;0;0;9;9;{2 - number}")
    (root / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    found = load(choose(Registry(), "dataset", "gtsrb", "here").component, tmp_path / "in", tmp_path / "cache")
    assert found.images.shape == (15, 3, 32, 32)
    assert found.is_test.sum() == 3
    assert found.labels[found.is_test].tolist() == [2, 1, 0]
    with pytest.raises(RequestError, match=r"differ in size; scale them, as in gtsrb\[size=64\]"):
        load(Photographs(which="gtsrb", size=0), tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize("name", sorted({**_GRAY, **_COLOR}))
def test_what_is_nowhere_is_one_line_that_says_what_to_do(name: str, tmp_path: Path) -> None:
    choice = choose(Registry(), "dataset", name, "here")
    with pytest.raises(RequestError) as error:
        choice.component.locate(tmp_path / "in")
    message = str(error.value)
    assert message.startswith(name)
    assert str(tmp_path / "in") in message
    assert "--data-dir" in message


@pytest.mark.parametrize("name", sorted({**_GRAY, **_COLOR}))
def test_every_entry_is_what_torchvision_offers(name: str) -> None:
    import inspect

    from torchvision import datasets

    holder = {**_GRAY, **_COLOR}[name]
    known = inspect.signature(getattr(datasets, holder.name).__init__).parameters
    for options in (*holder.train, *holder.test, holder.more, {"download": True}):
        assert all(key in known or "kwargs" in known for key in options), holder.name


def test_damaged_files_are_named(tmp_path: Path) -> None:
    mnist(tmp_path / "in")
    (tmp_path / "in" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(gzip.compress(b"else"))
    with pytest.raises(RequestError, match=r"mnist in .* is damaged or not whole"):
        load(HandwrittenCharacters(), tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(
            ("MNIST", "mnist"),
            ("KMNIST", "kmnist"),
            ("FashionMNIST", "fashion-mnist"),
            ("SVHN", "svhn"),
            ("STL10", "stl10"),
        ),
        *(("CIFAR10", "cifar10"), ("CIFAR100", "cifar100"), ("GTSRB", "gtsrb"), ("Imagenette", "imagenette")),
        *(("Flowers102", "flowers102"), ("Food101", "food101"), ("OxfordIIITPet", "oxford-pets"), ("USPS", "usps")),
        *(("FGVCAircraft", "fgvc-aircraft"), ("Country211", "country211"), ("Caltech101", "caltech101")),
    ],
)
def test_names_of_torchvision_lead_to_the_data_sets(theirs: str, ours: str) -> None:
    assert ours in Registry(installed=False).entries("dataset")
    with pytest.raises(RequestError, match=f'did you mean "{ours}"'):
        choose(Registry(installed=False), "dataset", theirs, "here")


def test_sizes_of_change_are_those_of_the_field() -> None:
    digits, signs = (
        choose(Registry(installed=False), "dataset", name, "here").component for name in ("mnist", "gtsrb")
    )
    assert digits.eps["linf"].values == (0.1, 0.2, 0.3)
    assert digits.eps["linf"].reference == 0.3
    assert {"l2", "l1"} <= digits.eps.keys()
    assert signs.eps["linf"].values == (2 / 255, 4 / 255, 8 / 255)
    assert {"l2", "l1"} <= signs.eps.keys()
