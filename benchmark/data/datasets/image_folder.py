"""The user's own images, in one folder per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from robbench.core.component import NoIdentity
from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.core.threat_model import Norm
from robbench.data.dataset import Dataset, EpsList, Raw
from robbench.data.datasets._files import IMAGE_SUFFIXES, list_images, subfolders


@register_dataset("image-folder", brief="your own images, a folder for each class")
@register_dataset(
    "image-folder-imbalanced",
    brief="your own images of three classes, 4949 : 466 : 210",
    train_shares=(1.0, 466 / 4949, 210 / 4949),
)
@dataclass(frozen=True)
class ImageFolder(Dataset):
    """Images of any size in folders that are named after their classes.

    The folder holds class folders, or ``train`` and ``test`` which hold class folders of the same names; what else lies
    there is not read. Images are made square by cutting off what is longer. The imbalanced variant has the first three
    classes, in the proportions 4949 : 466 : 210.

    Attributes:
        path: The folder; empty for the one given as data directory.
        size: Height and width to which images are scaled.
    """

    path: Annotated[str, NoIdentity] = ""
    size: Annotated[int, Field(ge=8)] = 32

    eps: ClassVar[Mapping[Norm, EpsList]] = {
        "linf": EpsList((2 / 255, 4 / 255, 8 / 255), reference=8 / 255),
        "l2": EpsList((0.25, 0.5, 1.0), reference=0.5),
        "l1": EpsList((4.0, 8.0, 12.0), reference=12.0),
    }
    recipe: ClassVar[Mapping[str, object]] = {"architecture": "resnet18", "epochs": 15, "batch_size": 128, "lr": 0.001}

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """List the images.

        Raises:
            RequestError: If no folder is named, it holds no classes, or a class that is used has fewer than three
                images, naming the folder.
        """
        root = Path(self.path).expanduser() if self.path else data_dir
        if root is None:
            raise RequestError("image-folder: which folder? name it with --data-dir DIR or image-folder[path=DIR]")
        if not root.is_dir():
            raise RequestError(f"image-folder: {root} is not a folder")
        official = (root / "train").is_dir() and (root / "test").is_dir()
        parts = (("train", False), ("test", True)) if official else (("", False),)
        names = subfolders(root / parts[0][0])
        for part, _ in parts:
            if not subfolders(root / part):
                raise RequestError(
                    f"image-folder: {root / part} holds no folders; each class needs a folder of its own"
                )
            odd = set(names) ^ set(subfolders(root / part))
            if odd:
                raise RequestError(f'image-folder: class "{min(odd)}" is in only one of {root}/train and {root}/test')
        images = list_images(root, names, parts)
        if not images.files:
            raise RequestError(f"image-folder: {root} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        counts = np.bincount(images.labels, minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count < 3 and name in (self.classes or names):
                folders = " and ".join(str(root / part / name) for part, _ in parts)
                raise RequestError(
                    f"image-folder: {folders} holds only {count} images; a class needs at least three, to train, "
                    "validate and test on"
                )
        return images.stamp(), lambda: images.decode(self.size)
