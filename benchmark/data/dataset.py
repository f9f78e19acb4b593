"""What a data set is: where its images come from, and how they are selected and split. Needs no torch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robbench.core.component import Component
from robbench.core.threat_model import Norm
from robbench.data.lazy_images import LazyImages, Mapped

StoredImages: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class DecodedImages(Mapped):
    """All images of a data set, before any selection or split.

    Attributes:
        images: uint8, or float32 in [0, 1], shape ``(N, C, H, W)``; decoded by indexing where they are lazy.
        labels: int64, shape ``(N,)``.
        class_names: Names of the classes, in the order of their indices.
        is_test: Which images the publisher set aside as test images, bool, shape ``(N,)``; all False where none.
        fingerprint: SHA-256 over images, labels, class names and test marks; of lazy images over hashes of their files.
        duplicates: How many images are equal, to the last bit, to an earlier one.
        remarks: What its user should know of how it was read, such as files that were not.
        files: Name of the file of each image below the data set's directory; empty where images have none.
    """

    images: StoredImages | LazyImages
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    is_test: NDArray[np.bool_]
    fingerprint: str
    duplicates: int
    remarks: tuple[str, ...] = ()
    files: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))


@dataclass(frozen=True)
class EpsList:
    """The perturbation sizes of a data set in one norm.

    Attributes:
        values: All of them, rising.
        reference: The one that boards rank by and that training-time defenses use.
    """

    values: tuple[float, ...]
    reference: float


@dataclass(frozen=True)
class Raw:
    """What a data set reads from its files: the fields of ``DecodedImages`` that are not derived."""

    images: StoredImages | LazyImages
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    is_test: NDArray[np.bool_]
    remarks: tuple[str, ...] = ()
    files: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))


COLOR_EPS: Mapping[Norm, EpsList] = {
    "linf": EpsList((2 / 255, 4 / 255, 8 / 255), reference=8 / 255),
    "l2": EpsList((0.25, 0.5, 1.0), reference=0.5),
    "l1": EpsList((4.0, 8.0, 12.0), reference=12.0),
}
"""The sizes of change that are usual for photographs."""
COLOR_RECIPE: Mapping[str, object] = {"architecture": "resnet18", "epochs": 15, "batch_size": 128, "lr": 0.001}
"""A recipe that suits them."""


@dataclass(frozen=True)
class Dataset(Component):
    """A data set with its selection and split.

    Attributes:
        classes: Names of the classes to keep, in the order of their new indices; empty for all.
        train_counts: Training images per class, exactly; empty for all that the split gives.
        train_shares: Training images per class, relative to the class that has most; empty for all. A class never gets
            fewer than ``train_least``.
        train_least: Smallest number of training images that ``train_shares`` may leave a class.
        test_counts: Test images per class, exactly; empty for all that the split gives.
        train_fraction: Share of the training split that is used, stratified.
        split: Shares of train, validation and test. Where the publisher set test images aside and ``pooled`` is
            False, those are the test split and the first two shares divide the rest. With 0, 0 and 1 nothing is for
            training, and classes may be empty.
        pooled: Whether to draw all splits from all images, publisher's test images included.
        split_seed: Seed of the stratified split.
        gallery: Reference images per class of nearest-neighbor models, drawn from train; fewer where the rarest class
            has fewer.
    """

    classes: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    train_shares: tuple[float, ...] = ()
    train_least: int = 6
    test_counts: tuple[int, ...] = ()
    train_fraction: float = 1.0
    split: tuple[float, float, float] = (0.55, 0.15, 0.30)
    pooled: bool = False
    split_seed: int = 0
    gallery: int = 100

    eps: ClassVar[Mapping[Norm, EpsList]] = {}
    """The sizes of change per norm."""
    recipe: ClassVar[Mapping[str, object]] = {}
    """Fields of ``Recipe`` that suit this data set, ``architecture`` among them; grids may override them."""
    published: ClassVar[str | None] = None
    """Fingerprint of the images that published boards are about, where their files can be others; a board of other
    images has a name of its own."""
    mirror: ClassVar[bool] = False
    """Whether a mirrored image keeps its class, so that augmentation may flip it."""

    @abc.abstractmethod
    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find the files without reading them.

        Args:
            data_dir: Where the user says that data lies.

        Returns:
            A stamp that changes when the files do (names, sizes, times, or a version), and a function that reads them.

        Raises:
            RequestError: If they are not there: what was looked for where, and what the user can do.
        """
