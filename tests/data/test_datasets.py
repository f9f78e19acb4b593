from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_checks import counts, preset
from PIL import Image
from resident import pixels

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data.cache import load
from robbench.data.dataset import Dataset, DecodedImages
from robbench.data.datasets import cifar10, fashion_mnist
from robbench.data.datasets._image_decoding import decode_image
from robbench.data.datasets.cifar10 import CIFAR10, CLASS_NAMES
from robbench.data.datasets.digits import Digits
from robbench.data.datasets.fashion_mnist import FashionMNIST
from robbench.data.datasets.image_folder import ImageFolder
from robbench.data.splits import split

# --------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn_scaled_up(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    found = load(Digits(), None, tmp_path)
    bunch = load_digits()
    assert found.images.shape == (1797, 3, 32, 32)
    np.testing.assert_array_equal(found.labels, bunch.target)
    assert np.all(pixels(found.images) == pixels(found.images)[:, :1])
    for index in range(0, 1797, 100):
        gray = Image.fromarray((bunch.images[index] * 255 / 16).astype(np.float32))
        wanted = np.asarray(gray.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(pixels(found.images)[index, 0] - wanted).max() <= 0.501
    splits = split(Digits(), found)
    assert min(splits.counts(splits.test)) >= 50
    assert pixels(found.images).max() == 255


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
    assert pixels(found.images)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 77, 0, 1, 2, 3]
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


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)

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
    assert f"in {tmp_path}/few too few images are of bee (2)" in refused(tmp_path / "few")
    ImageFolder(classes=("ape", "cow")).locate(tmp_path / "few")
    folders(tmp_path / "odd" / "train", ("ape", "bee"))
    folders(tmp_path / "odd" / "test", ("ape", "bees"))
    assert "hold folders of the classes bee, bees" in refused(tmp_path / "odd")


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
    assert pixels(found.images)[:, 0, 0, 0].tolist() == found.labels.tolist() == [*range(10)] * 2
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
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> DecodedImages:
    root = os.environ.get("ROBBENCH_DATA")
    if root is None or not any((Path(root) / name).exists() for name in ("cifar10", "cifar-10-batches-py", "train")):
        pytest.skip("ROBBENCH_DATA leads to no CIFAR-10")
    return load(CIFAR10(), None, tmp_path_factory.mktemp("cache"))


@pytest.mark.end_to_end
def test_real_cifar10_is_whole(real_cifar10: DecodedImages) -> None:
    assert real_cifar10.images.shape == (60000, 3, 32, 32)
    assert np.bincount(real_cifar10.labels).tolist() == [6000] * 10
    assert np.bincount(real_cifar10.labels[real_cifar10.is_test]).tolist() == [1000] * 10
    # Published means of the training images per channel: 0.4914, 0.4822, 0.4465.
    mean = pixels(real_cifar10.images)[~real_cifar10.is_test].mean(axis=(0, 2, 3)) / 255
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
    np.testing.assert_array_equal(found.images, images[:, None])
    assert found.labels.tolist() == labels.tolist()
    assert found.is_test.tolist() == [False] * 30 + [True] * 30
    assert found.class_names[6] == "Shirt"


@pytest.mark.parametrize("damage", ["cut", "cut gz", "other", "fewer", "empty", "integers", "longer"])
def test_damaged_idx_files_are_named(damage: str, home: Path) -> None:
    fashion(home / "data", compressed=damage == "cut gz")
    name = "t10k-images-idx3-ubyte" + (".gz" if damage == "cut gz" else "")
    path = home / "data" / name
    data = path.read_bytes()
    other = np.zeros((7, 28, 28), np.uint8)
    damaged = {
        "other": b"<html>",
        "fewer": idx(other),
        "empty": b"",
        "integers": idx(np.zeros((30, 28, 28), ">i4")).replace(b"\x08", b"\x0c", 1),
        "longer": data + b"\0",
    }
    path.write_bytes(damaged.get(damage, data[: len(data) // 2]))
    with pytest.raises(RequestError, match=name) as error:
        load(FashionMNIST(), home / "data", home / "cache")
    assert len(str(error.value).splitlines()) == 1
