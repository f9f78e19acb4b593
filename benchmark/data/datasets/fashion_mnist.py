"""Fashion-MNIST: small gray pictures of clothes."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.core.threat_model import Norm
from robbench.data.dataset import Dataset, EpsList, Raw
from robbench.data.datasets._files import download, roots
from robbench.results.schema import digest

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts it."""
_LARGEST = 2**26
"""Bytes of an unpacked file: the largest one has 47,040,016."""


@register_dataset("fashion-mnist", brief="70,000 gray pictures of clothes in ten classes")
@register_dataset(
    "fashion-mnist-imbalanced",
    brief="three similar garments, 4949 : 466 : 210",
    classes=("Shirt", "T-shirt/top", "Pullover"),
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@register_dataset(
    "fashion-mnist-three",
    brief="the same three garments, 1,000 each to test on, as the other data sets of three classes",
    classes=("Shirt", "T-shirt/top", "Pullover"),
    train_shares=(1.0, 466 / 4949, 210 / 4949),
    test_counts=(1000,) * 3,
)
@register_dataset(
    "fashion-mnist-long-tail",
    brief="clothes, training images falling 100-fold from the first class to the last",
    train_shares=tuple(100 ** (-rank / 9) for rank in range(10)),
)
@register_dataset(
    "fashion-mnist-fifth", brief="clothes, 20 % of all images to train on", pooled=True, split=(0.2, 0.05, 0.75)
)
@dataclass(frozen=True)
class FashionMNIST(Dataset):
    """70,000 gray 28×28 pictures of clothes in ten classes, 10,000 of them to test on (Xiao, Rasul, Vollgraf, 2017).

    The default split trains on 54,000 of the 60,000 training images and validates on the others. The imbalanced variant
    has three garments that resemble each other, in the proportions 4949 : 466 : 210, and 3,000 test images.
    The long tail is that of Cui et al. ("Class-balanced loss based on effective number of samples", 2019): class k of K
    has 100^(-k / (K - 1)) of the training images of the first. The fifth trains on 20 % of all images and validates on
    5 %.
    """

    split: tuple[float, float, float] = (54 / 70, 6 / 70, 10 / 70)

    version: ClassVar[int] = 2
    eps: ClassVar[Mapping[Norm, EpsList]] = {
        "linf": EpsList((0.02, 0.05, 0.1), reference=0.1),
        "l2": EpsList((0.5, 1.0, 2.0), reference=1.0),
        "l1": EpsList((5.0, 10.0, 20.0), reference=10.0),
    }
    recipe: ClassVar[Mapping[str, object]] = {
        "architecture": "compact-cnn",
        "epochs": 10,
        "batch_size": 128,
        "lr": 0.003,
    }
    mirror: ClassVar[bool] = True

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find or download the four files, compressed or not.

        They are looked for in ``data_dir``, in the directory that the environment variable ``ROBBENCH_DATA`` names and
        among earlier downloads, in the folders ``fashion-mnist`` and ``FashionMNIST/raw`` of each, and where Debian
        installs them.

        Raises:
            RequestError: If they are not found and cannot be downloaded.
        """
        below = ("", "fashion-mnist", "FashionMNIST/raw")
        places = [*(root / folder for root in roots(data_dir) for folder in below), _SYSTEM]
        files = _find(places)
        if files is None:
            target = download("Fashion-MNIST", f"{_FILES[0]} (or .gz) and its like", places, data_dir, _fetch)
            files = _find([target / "FashionMNIST" / "raw"])
        if files is None:
            raise RequestError(f"Fashion-MNIST was downloaded to {target} and is not there")
        stats = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
        return digest(stats), lambda: _read(*files)


def _find(places: list[Path]) -> tuple[Path, ...] | None:
    for place in places:
        files = [
            next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None) for name in _FILES
        ]
        found = tuple(file for file in files if file is not None)
        if len(found) == len(_FILES):
            return found
    return None


def _fetch(target: Path) -> None:
    from torchvision.datasets import FashionMNIST as Torchvision

    Torchvision(str(target), download=True)


def _read(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> Raw:
    parts = [_pair(train_images, train_labels), _pair(test_images, test_labels)]
    return Raw(
        images=np.concatenate([images for images, _ in parts])[:, None],
        labels=np.concatenate([labels for _, labels in parts]).astype(np.int64),
        class_names=CLASS_NAMES,
        is_test=np.repeat([False, True], [len(labels) for _, labels in parts]),
    )


def _pair(image_file: Path, label_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.shape != (len(labels), 28, 28):
        raise RequestError(f"{image_file} holds images of shape {images.shape}, not ({len(labels)}, 28, 28)")
    if labels.ndim != 1 or labels.max(initial=0) >= len(CLASS_NAMES):
        raise RequestError(f"{label_file} does not hold labels from 0 to {len(CLASS_NAMES) - 1}")
    return images, labels


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in the idx format (LeCun, Cortes and Burges), compressed or not.

    Raises:
        RequestError: If the file is damaged, truncated, larger than any of Fashion-MNIST, or holds something else.
    """
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "idx" if path.suffix == ".gz" else path
        try:
            with gzip.open(path) if plain != path else path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise RequestError(f"{path} has more than {_LARGEST:,} bytes, which no file of Fashion-MNIST has")
            if plain != path:
                plain.write_bytes(content)
            array: NDArray[np.generic] = read_sn3_pascalvincent_tensor(str(plain)).numpy()
        except (OSError, EOFError, zlib.error) as error:
            raise RequestError(f"{path} cannot be read ({error}); replace it or remove it") from error
        except (AssertionError, LookupError, RuntimeError, ValueError):
            array = np.empty(0)
    if array.dtype != np.uint8:
        raise RequestError(f"{path} is not a whole idx file of bytes; replace it or remove it")
    return array.astype(np.uint8, copy=False)
