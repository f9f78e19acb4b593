"""CIFAR-10: small color photographs in ten classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.data.dataset import COLOR_EPS, COLOR_RECIPE, Dataset, Raw
from robbench.data.datasets._files import download, list_images, roots, stamp

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = "cifar-10-batches-py"


@register_dataset("cifar10", brief="60,000 photographs in ten classes")
@register_dataset(
    "cifar10-imbalanced",
    brief="three classes of CIFAR-10, 4949 : 466 : 210",
    classes=("automobile", "truck", "cat"),
    pooled=True,
    train_counts=(4949, 466, 210),
    test_counts=(551, 51, 23),
)
@register_dataset(
    "cifar10-three",
    brief="three classes of CIFAR-10, 4949 : 466 : 210 to train on, 1,000 each to test on",
    classes=("automobile", "truck", "cat"),
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@register_dataset(
    "cifar10-long-tail",
    brief="CIFAR-10, training images falling 100-fold from the first class to the last",
    train_shares=tuple(100 ** (-rank / 9) for rank in range(10)),
)
@register_dataset(
    "cifar10-fifth",
    brief="CIFAR-10, 20 % of all images to train on",
    pooled=True,
    split=(0.2, 0.05, 0.75),
    test_counts=(1000,) * 10,
)
@dataclass(frozen=True)
class CIFAR10(Dataset):
    """60,000 color photographs in ten classes, 32×32, of which 10,000 are test images (Krizhevsky, 2009).

    Read from the published batches or from images in folders ``train/<class>`` and ``test/<class>``; downloaded where
    neither is found. The default split trains on 45,000 of the 50,000 training images and validates on the others. The
    imbalanced variant has 5,625 training and 625 test images of three classes, drawn from all images; the variant with
    three classes trains in the same proportions and tests on all 3,000 test images. The long tail is that of Cui et al.
    ("Class-balanced loss based on effective number of samples", 2019): class k of K has 100^(-k / (K - 1)) of the
    training images of the first. The fifth trains on 12,000 of all images, validates on 3,000 and tests on 10,000 of
    the others.
    """

    split: tuple[float, float, float] = (45 / 60, 5 / 60, 10 / 60)
    gallery: int = 200

    eps = COLOR_EPS
    recipe = COLOR_RECIPE
    published: ClassVar[str | None] = "812dd3b73d5fb12fe1617f0d10eaecd6f433ee688c56a42f1c1496d92bd020dc"
    mirror: ClassVar[bool] = True

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find or download the batches or folders.

        They are looked for in ``data_dir``, in the directory that the environment variable ``ROBBENCH_DATA`` names and
        among earlier downloads, and in the folder ``cifar10`` of each.

        Raises:
            RequestError: If they are not found and cannot be downloaded.
        """
        places = [place for root in roots(data_dir) for place in (root, root / "cifar10")]
        found = _find(places)
        if found is None:
            target = download("CIFAR-10", f"{_BATCHES} or train/<class> and test/<class>", places, data_dir, _fetch)
            found = _find([target])
        if found is None:
            raise RequestError(f"CIFAR-10 was downloaded to {target} and is not there")
        return found


def _find(places: list[Path]) -> tuple[str, Callable[[], Raw]] | None:
    for place in places:
        if (place / _BATCHES).is_dir():
            with os.scandir(place / _BATCHES) as entries:
                files = sorted(entries, key=lambda entry: entry.name)
            return stamp(place, files), lambda place=place: _read_batches(place)
        if all((place / part / name).is_dir() for part in ("train", "test") for name in CLASS_NAMES):
            images = list_images(place, CLASS_NAMES, (("train", False), ("test", True)))
            return images.stamp(), lambda images=images: images.decode(32)
    return None


def _fetch(target: Path) -> None:
    from torchvision.datasets import CIFAR10 as Torchvision

    Torchvision(str(target), download=True)


def _read_batches(place: Path) -> Raw:
    from torchvision.datasets import CIFAR10 as Torchvision

    try:
        parts = [Torchvision(str(place), train=train) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # the batches are pickles: they are opened only if their checksums hold
        raise RequestError(
            f"{place / _BATCHES} is not the published CIFAR-10, or damaged; remove it to have it downloaded again"
        ) from error
    return Raw(
        images=np.ascontiguousarray(np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)),
        labels=np.concatenate([np.array(part.targets, dtype=np.int64) for part in parts]),
        class_names=CLASS_NAMES,
        is_test=np.repeat([False, True], [len(part.data) for part in parts]),
    )
