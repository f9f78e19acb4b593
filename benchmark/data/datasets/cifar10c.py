"""CIFAR-10-C: the published corrupted test images of CIFAR-10, as they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES, CorruptionKind
from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.data.dataset import Raw
from robbench.data.datasets._files import DATA_VARIABLE, roots, stamp
from robbench.data.datasets.cifar10 import CIFAR10, CLASS_NAMES
from robbench.results.schema import digest

_IMAGES = 10_000
_LABELS = "labels.npy"
_FILES = {kind: f"{kind.replace('-', '_')}.npy" for kind in (*MAIN, *EXTRA)}


@register_dataset("cifar10-c", brief="CIFAR-10 with the published corrupted test images")
@dataclass(frozen=True)
class CIFAR10C(CIFAR10):
    """CIFAR-10 whose test images are the 10,000 of CIFAR-10-C under one corruption (Hendrycks and Dietterich, 2019).

    Training and validation images are those of CIFAR-10. Clean accuracy on it is accuracy under the corruption.

    Attributes:
        kind: Which corruption.
        severity: From 1 to 5.
    """

    kind: CorruptionKind = "gaussian-noise"
    severity: Annotated[int, Field(ge=1, le=5)] = 3

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            RequestError: If a value does not fit, or corrupted images would be trained on.
        """
        super().__post_init__()
        if self.pooled:
            raise RequestError("pooled = true: the images of CIFAR-10-C are to be tested on, not trained on")

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find the arrays, and find or download CIFAR-10 itself.

        The arrays are looked for where CIFAR-10 is, and in the folders ``CIFAR-10-C`` and ``cifar10-c`` there.

        Raises:
            RequestError: If a file is missing, or CIFAR-10 is not found and cannot be downloaded.
        """
        folder = _find(data_dir, self.kind)
        with os.scandir(folder) as entries:
            files = sorted(
                (entry for entry in entries if entry.name in (_FILES[self.kind], _LABELS)), key=lambda file: file.name
            )
        clean, read = super().locate(data_dir)
        return digest([clean, stamp(folder, files)]), lambda: self._read(folder, read)

    def _read(self, folder: Path, read: Callable[[], Raw]) -> Raw:
        images, labels = read_cifar10c(folder, self.kind, self.severity)
        clean = read()
        kept = np.flatnonzero(~clean.is_test)
        return Raw(
            images=np.concatenate([clean.images[kept], images]),
            labels=np.concatenate([clean.labels[kept], labels]),
            class_names=CLASS_NAMES,
            is_test=np.repeat([False, True], [len(kept), len(images)]),
        )


def _find(data_dir: Path | None, kind: CorruptionKind) -> Path:
    places = [root / folder for root in roots(data_dir) for folder in ("", "CIFAR-10-C", "cifar10-c")]
    lacking = ""
    for place in places:
        names = [name for name in (_LABELS, *_FILES.values()) if (place / name).is_file()]
        missing = [name for name in (_FILES[kind], _LABELS) if name not in names]
        if not missing:
            return place
        if names and not lacking:
            lacking = f"{place} lacks {' and '.join(missing)}; of CIFAR-10-C there are {', '.join(names)}"
    raise RequestError(
        lacking
        or f"CIFAR-10-C was not found: no {_FILES[kind]} and {_LABELS} in {', '.join(map(str, places))}; unpack "
        f"CIFAR-10-C.tar (zenodo.org/records/2535967) and name the directory with --data-dir or {DATA_VARIABLE}"
    )


def read_cifar10c(folder: Path, kind: CorruptionKind, severity: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The published test images under one corruption, in the order of CIFAR-10's published test images.

    Args:
        folder: Holds ``<kind>.npy``, with underscores, and ``labels.npy``: 50,000 images and labels, 10,000 for each
            severity in turn.
        kind: Which corruption.
        severity: From 1 to 5.

    Returns:
        Images, uint8, shape ``(10000, 3, 32, 32)``, and labels, int64, shape ``(10000,)``.

    Raises:
        RequestError: If a file is missing, damaged or something else.
    """
    total = _IMAGES * len(SEVERITIES)
    images = _array(folder / _FILES[kind], (total, 32, 32, 3))
    labels = _array(folder / _LABELS, (total,))
    if images.dtype != np.uint8:
        raise RequestError(f"{folder / _FILES[kind]} holds {images.dtype}, not uint8")
    if not np.issubdtype(labels.dtype, np.integer) or not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
        raise RequestError(f"{folder / _LABELS} does not hold labels from 0 to {len(CLASS_NAMES) - 1}")
    part = slice((severity - 1) * _IMAGES, severity * _IMAGES)
    return np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)), labels[part].astype(np.int64)


def _array(path: Path, shape: tuple[int, ...]) -> NDArray[np.generic]:
    try:
        found: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"{path} cannot be read as an array ({error}); replace it") from error
    if found.shape != shape:
        raise RequestError(f"{path} has the shape {found.shape}, not {shape}")
    return found
