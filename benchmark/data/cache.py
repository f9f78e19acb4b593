"""From a data set's files to decoded images: decoded once and kept, whatever the selection. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.atomic_io import make_way
from robbench.core.errors import Damaged, RequestError, StoreError, unless_damaged
from robbench.core.lease import leased
from robbench.core.sealed import CHANGED, SealedDirectory, sealed_json
from robbench.data.lazy_images import LazyImages
from robbench.results.schema import digest

if TYPE_CHECKING:
    from robbench.data.dataset import Dataset, DecodedImages, Raw, StoredImages

CACHE_FORMAT = 2
_INDEX = ("paths", "hashes", "rows")
"""Arrays of ``LazyImages``."""

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

    They are decoded once and kept under ``cache``, and decoded again where what is kept there is damaged. The images of
    the result are mapped from there.

    Args:
        located: The data set with its files.
        cache: Directory for decoded images, made where it is missing. Several processes may share it.

    Raises:
        RequestError: If the files cannot be read.
        StoreError: If the cache cannot be written.
    """
    entry = _entry(located, cache)
    decoded = unless_damaged(lambda: _cached(entry), None, "its images are decoded again")
    return _kept(located, entry) if decoded is None else decoded


def check(located: Located, cache: Path) -> bool:
    """Whether a data set's decoded images are kept under ``cache``.

    Raises:
        Damaged: If they are not what was written there.
    """
    return _cached(_entry(located, cache)) is not None


def _entry(located: Located, cache: Path) -> Path:
    dataset = located.dataset
    return cache / f"{type(dataset).__name__.lower()}-{_key(dataset, located.stamp)}"


def _kept(located: Located, entry: Path) -> DecodedImages:
    raw = _guarded(located.dataset, located.read)
    _check(raw, type(located.dataset).__name__)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with leased(entry.with_name(f".{entry.name}.lock")):
            with contextlib.suppress(Damaged):
                decoded = _cached(entry)
                if decoded is not None:  # somebody else has kept them meanwhile
                    return decoded
            _keep(raw, entry)
            decoded = _cached(entry)
    except OSError as error:
        # NumPy tells how much it could write, and not what stopped it.
        reason = error.strerror or f"there is no more room ({error})"
        raise StoreError(f"decoded images cannot be kept in {entry.parent}: {reason}") from error
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
    images = raw.images
    wild = isinstance(images, np.ndarray) and images.dtype == np.float32 and not ((images >= 0) & (images <= 1)).all()
    faults = {
        "images must be uint8 or float32 of shape (N, C, H, W)": images.ndim != 4
        or images.dtype not in (np.uint8, np.float32)
        or 0 in images.shape[1:],
        "floats must lie in [0, 1]": bool(wild),
        "images, labels and test marks must be as many": not len(images) == count == len(raw.is_test),
        "names of files must be as many as images, or none": len(raw.files) not in (0, count),
        "labels must be whole numbers": raw.labels.dtype.kind not in "iu",
        "there must be at least one image": count == 0,
        "labels must be indices of class names": count > 0 and not 0 <= raw.labels.min() <= raw.labels.max() < classes,
        "class names must differ": len(set(raw.class_names)) != classes,
    }
    for fault, holds in faults.items():
        if holds:
            raise RequestError(f"what was read is not a data set: {fault}", name)


def image_digests(images: StoredImages | LazyImages, index: Iterable[int]) -> list[bytes]:
    """A hash of each image at some positions, by which equal ones are told."""
    if isinstance(images, LazyImages):
        return [images.hashes[i].tobytes() for i in index]
    return [hashlib.sha256(images[i].tobytes()).digest() for i in index]


def _fingerprint(raw: Raw | DecodedImages) -> str:
    images: NDArray[Any] = raw.images.hashes if isinstance(raw.images, LazyImages) else raw.images
    kind = [] if images.dtype == np.uint8 else ["float32"]
    if isinstance(raw.images, LazyImages):
        kind = ["files"]
    header = json.dumps([list(raw.images.shape), list(raw.class_names), *kind])
    total = hashlib.sha256(header.encode())
    images = images if images.dtype == np.uint8 else images.astype("<f4")
    for array in (images, raw.labels.astype("<i8"), raw.is_test.astype(np.uint8)):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _keep(raw: Raw, entry: Path) -> None:
    images = raw.images
    arrays = {
        "labels": raw.labels.astype(np.int64),
        "is_test": raw.is_test.astype(np.bool_),
        "files": raw.files,
        **({name: getattr(images, name) for name in _INDEX} if isinstance(images, LazyImages) else {"images": images}),
    }
    meta = {
        "class_names": list(raw.class_names),
        "fingerprint": _fingerprint(raw),
        "duplicates": len(images) - len(set(image_digests(images, range(len(images))))),
        "shape": list(images.shape),
        "remarks": list(raw.remarks),
        "files": len(raw.files),
        "files_sha256": _digest(raw.files),
    }
    if isinstance(images, LazyImages):
        meta["index"] = {"root": os.fsencode(images.root).hex(), "column": images.column, "sha256": _index_hash(images)}
    make_way(entry / "meta.json")
    entry.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.parent) as work:
        made = Path(work)
        for name, array in arrays.items():
            np.save(made / f"{name}.npy", array)
        (made / "meta.json").write_text(sealed_json(meta, f"{entry.name}/meta.json"), encoding="utf-8")
        # The file that makes an entry valid comes last.
        for name in (*(f"{name}.npy" for name in arrays), "meta.json"):
            make_way(entry / name)
            os.replace(made / name, entry / name)


def _cached(entry: Path) -> DecodedImages | None:
    """What a whole entry holds, or None where there is none.

    Raises:
        Damaged: If its content is not that of its fingerprint.
    """
    from robbench.data.dataset import DecodedImages

    meta = SealedDirectory(entry.parent).read(entry / "meta.json")
    if meta is None:
        return None
    try:
        index = meta.get("index")
        images = _indexed(entry, meta) if index else np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        is_test = np.load(entry / "is_test.npy", allow_pickle=False)
        # What holds nothing cannot be mapped.
        files = np.load(entry / "files.npy", mmap_mode="r" if meta["files"] else None, allow_pickle=False)
        names, remarks = tuple(meta["class_names"]), tuple(meta["remarks"])
        found = DecodedImages(
            images, labels, names, is_test, meta["fingerprint"], meta["duplicates"], remarks=remarks, files=files
        )
        types = images.dtype in (np.uint8, np.float32) and (labels.dtype, is_test.dtype) == (np.int64, np.bool_)
        sizes = list(images.shape) == meta["shape"] and len(files) == meta["files"]
        whole = types and sizes and _fingerprint(found) == found.fingerprint and _digest(files) == meta["files_sha256"]
        whole = whole and (not index or _index_hash(images) == index["sha256"])
    except Exception as error:
        # What a damaged file makes of the libraries is not limited to their own errors.
        raise Damaged(entry, str(error)) from error
    if not whole:
        raise Damaged(entry, CHANGED)
    return found


def _indexed(entry: Path, meta: Mapping[str, Any]) -> LazyImages:
    arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _INDEX}
    root = Path(os.fsdecode(bytes.fromhex(meta["index"]["root"])))
    return LazyImages(root=root, shape=tuple(meta["shape"]), column=meta["index"]["column"], **arrays)


def _index_hash(images: LazyImages) -> str:
    """Of what the fingerprint leaves out: where the images are."""
    return digest([_digest(images.paths), _digest(images.rows), len(images.hashes)])


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
