"""The data set my-dataset: noisy stripes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from robbench import Dataset, EpsList, Raw, register_dataset


@register_dataset(
    "my-dataset",
    brief="stripes, upright or lying",
)
@dataclass(frozen=True)
class MyDataset(Dataset):
    """Noisy stripes, upright or lying: two classes that need no file."""

    eps: ClassVar = {"linf": EpsList((0.05, 0.1, 0.2), reference=0.1)}
    recipe: ClassVar = {"architecture": "compact-cnn", "epochs": 5, "lr": 0.001}

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """A stamp that changes when the data do, and what reads them."""
        return "stripes 1", _read


def _read() -> Raw:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    upright = np.broadcast_to(np.arange(32) // 4 % 2 * 120, (32, 32))
    clean = np.where(labels[:, None, None, None] == 0, upright, upright.T)
    images = (clean + rng.integers(0, 100, (400, 3, 32, 32))).astype(np.uint8)
    is_test = np.zeros(400, dtype=bool)  # none set aside: robbench splits
    return Raw(images, labels, ("upright", "lying"), is_test)
