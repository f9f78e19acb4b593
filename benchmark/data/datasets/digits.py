"""Handwritten digits that come with scikit-learn: no download, small enough for two CPU cores."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from robbench.core.registry import register_dataset
from robbench.core.threat_model import Norm
from robbench.data.dataset import Dataset, EpsList, Raw


@register_dataset("digits", brief="1,797 digits in ten classes, from scikit-learn")
@register_dataset(
    "digits-imbalanced",
    brief="three similar digits, 4949 : 466 : 210",
    classes=("8", "3", "9"),
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@register_dataset(
    "digits-three",
    brief="the same three digits, as the other data sets of three classes",
    classes=("8", "3", "9"),
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@register_dataset(
    "digits-long-tail",
    brief="digits, training images falling from the first class to the last, to 6 at least",
    train_shares=tuple(100 ** (-rank / 9) for rank in range(10)),
)
@register_dataset("digits-fifth", brief="digits, 20 % of all images to train on", split=(0.2, 0.1, 0.7))
@dataclass(frozen=True)
class Digits(Dataset):
    """1,797 handwritten digits in ten classes, 8×8 gray levels scaled up to 32×32 (Alpaydin and Kaynak, 1998).

    The imbalanced variant has three digits that resemble each other, in the proportions 4949 : 466 : 210. The fifth
    trains on 20 % of the images and validates on 10 %.
    """

    eps: ClassVar[Mapping[Norm, EpsList]] = {
        "linf": EpsList((0.05, 0.1, 0.2), reference=0.1),
        "l2": EpsList((0.5, 1.0, 2.0), reference=1.0),
        "l1": EpsList((5.0, 10.0, 20.0), reference=10.0),
        "l0": EpsList((10.0, 20.0, 50.0), reference=20.0),
    }
    recipe: ClassVar[Mapping[str, object]] = {
        "architecture": "compact-cnn",
        "epochs": 15,
        "batch_size": 64,
        "lr": 0.001,
    }

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """The digits of the installed scikit-learn; ``data_dir`` is not used."""
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}", _read


def _read() -> Raw:
    import torch
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).to(torch.float32)[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(levels, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous().numpy()
    return Raw(
        images=images,
        labels=bunch.target.astype(np.int64),
        class_names=tuple(str(name) for name in bunch.target_names),
        is_test=np.zeros(len(images), dtype=np.bool_),
    )
