"""Data sets whose images are made from their position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robbench.data.dataset import Dataset, DecodedImages, Raw


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
