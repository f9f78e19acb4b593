"""From a data set's files to decoded images: decoded once and kept, whatever the selection. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError, StoreError
from robbench.results.schema import digest, dumps

if TYPE_CHECKING:
    from robbench.data.dataset import Dataset, DecodedImages, Raw

CACHE_FORMAT = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Located:
    """A data set whose files were found and not yet read.

    Attributes:
        dataset: The data set.
        stamp: Changes when the files do.
        read: Reads them.
    """

    dataset: Dataset
    stamp: str
    read: Callable[[], Raw]


def locate(dataset: Dataset, data_dir: Path | None) -> Located:
    """Find a data set's files; see ``Dataset.locate``.

    Args:
        dataset: The data set.
        data_dir: Where the user says that data lies.

    Raises:
        RequestError: If they cannot be found, whatever the reason.
    """
    return Located(dataset, *_guarded(dataset, lambda: dataset.locate(data_dir)))


def load(dataset: Dataset, data_dir: Path | None, cache: Path) -> DecodedImages:
    """The decoded images of a data set, its files found first; see ``locate`` and ``decode``."""
    return decode(locate(dataset, data_dir), cache)


def decode(located: Located, cache: Path) -> DecodedImages:
    """The decoded images of a data set, before selection and split.

    They are decoded once and kept under ``cache``; the images of the result are mapped from there, so that what needs
    only labels reads only labels.

    Args:
        located: The data set with its files.
        cache: Directory for decoded images, made where it is missing. Several processes may share it.

    Raises:
        RequestError: If the files cannot be read.
        StoreError: If the cache cannot be written.
    """
    dataset = located.dataset
    entry = cache / f"{type(dataset).__name__.lower()}-{_key(dataset, located.stamp)}"
    decoded = _cached(entry)
    if decoded is None:
        raw = _guarded(dataset, located.read)
        _check(raw, type(dataset).__name__)
        try:
            _keep(raw, entry)
        except OSError as error:
            raise StoreError(f"decoded images cannot be kept in {cache}: {error.strerror or error}") from error
        decoded = _cached(entry)
        if decoded is None:
            raise StoreError(f"decoded images were written to {entry} and cannot be read from there")
    return decoded


def _guarded(dataset: Dataset, step: Callable[[], T]) -> T:
    try:
        return step()
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"cannot be read: {type(error).__name__}: {error}", type(dataset).__name__) from error


def _key(dataset: Dataset, stamp: str) -> str:
    from robbench.data.dataset import Dataset as Base

    # Every data set has the selection and the split; what a class adds to them says how its files are read.
    own = {name: value for name, value in dataset.parameters().items() if name not in Base.field_names()}
    cls = type(dataset)
    return digest([CACHE_FORMAT, cls.__module__, cls.__qualname__, cls.version, own, stamp])


def _check(raw: Raw, name: str) -> None:
    count, classes = len(raw.labels), len(raw.class_names)
    faults = {
        "images must be uint8 or float32 of shape (N, C, H, W)": raw.images.ndim != 4
        or raw.images.dtype not in (np.uint8, np.float32)
        or 0 in raw.images.shape[1:],
        "floats must lie in [0, 1]": raw.images.dtype == np.float32
        and not bool(((raw.images >= 0) & (raw.images <= 1)).all()),
        "images, labels and test marks must be as many": not len(raw.images) == count == len(raw.is_test),
        "names of files must be as many as images, or none": len(raw.files) not in (0, count),
        "there must be at least one image": count == 0,
        "labels must be indices of class names": count > 0 and not 0 <= raw.labels.min() <= raw.labels.max() < classes,
        "class names must differ": len(set(raw.class_names)) != classes,
    }
    for fault, holds in faults.items():
        if holds:
            raise RequestError(f"what was read is not a data set: {fault}", name)


def image_digests(images: Iterable[NDArray[Any]]) -> list[bytes]:
    """A hash of each image, by which equal ones are told."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def _fingerprint(raw: Raw) -> str:
    kind = [] if raw.images.dtype == np.uint8 else ["float32"]
    header = json.dumps([list(raw.images.shape), list(raw.class_names), *kind])
    total = hashlib.sha256(header.encode())
    images = raw.images if raw.images.dtype == np.uint8 else raw.images.astype("<f4")
    for array in (images, raw.labels.astype("<i8"), raw.is_test.astype(np.uint8)):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _keep(raw: Raw, entry: Path) -> None:
    meta = {
        "class_names": list(raw.class_names),
        "fingerprint": _fingerprint(raw),
        "duplicates": len(raw.images) - len(set(image_digests(raw.images))),
        "shape": list(raw.images.shape),
        "remarks": list(raw.remarks),
        "files": len(raw.files),
    }
    entry.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.parent) as work:
        made = Path(work)
        np.save(made / "images.npy", raw.images)
        np.save(made / "labels.npy", raw.labels.astype(np.int64))
        np.save(made / "is_test.npy", raw.is_test.astype(np.bool_))
        np.save(made / "files.npy", raw.files)
        (made / "meta.json").write_text(dumps(meta), encoding="utf-8")
        # The file that makes an entry valid comes last. Processes that do this at once move files of equal content.
        for name in ("images.npy", "labels.npy", "is_test.npy", "files.npy", "meta.json"):
            os.replace(made / name, entry / name)


def _cached(entry: Path) -> DecodedImages | None:
    """What a whole entry holds, or None where there is none or it is damaged."""
    from robbench.data.dataset import DecodedImages

    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        images = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        is_test = np.load(entry / "is_test.npy", allow_pickle=False)
        # What holds nothing cannot be mapped.
        files = np.load(entry / "files.npy", mmap_mode="r" if meta["files"] else None, allow_pickle=False)
        if list(images.shape) != meta["shape"] or not len(images) == len(labels) == len(is_test):
            return None
        names, remarks = tuple(meta["class_names"]), tuple(meta["remarks"])
        return DecodedImages(
            images, labels, names, is_test, meta["fingerprint"], meta["duplicates"], remarks=remarks, files=files
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
