"""The user's own images as NumPy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robbench.core.component import NoIdentity
from robbench.core.errors import RequestError
from robbench.core.registry import register_dataset
from robbench.data.dataset import COLOR_EPS, Dataset, Raw, StoredImages
from robbench.data.datasets._files import named_dirs, some
from robbench.results.schema import digest

Layout = Literal["auto", "nchw", "nhwc"]

_IMAGES = ("images", "x", "X", "data", "inputs")
_LABELS = ("labels", "y", "Y", "targets", "label")
_NAMES = ("class_names", "classes")
_PARTS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("train", "training"), False),
    (("val", "valid", "validation"), False),
    (("test", "testing"), True),
)
"""Names of parts, each with whether it holds the test images."""
_CHANNELS = (1, 2, 3, 4)
"""What a last or second length must be for the layout to be seen."""


@register_dataset("arrays", brief="your own images in an npz file, or npy files in a folder")
@dataclass(frozen=True)
class Arrays(Dataset):
    """Images and labels in one ``.npz`` file, or in ``.npy`` files of a folder.

    There are ``images`` and ``labels`` (or ``x`` and ``y``, ``data`` and ``targets``), or these for each part, as
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` or ``train_images``, ``train_labels`` and so on. ``class_names``
    may be there; otherwise the labels are the names. Images have any number of channels and any size; bytes stay bytes,
    floats in [0, 1] stay as they are, in single precision.

    Attributes:
        path: The file or folder; empty for the one given as data directory.
        layout: Whether channels come before (``nchw``) or behind (``nhwc``) height and width; ``auto`` where it shows.
        num_classes: Number of classes that the labels count from 0, whether or not all occur; 0 for those that do.
    """

    path: Annotated[str, NoIdentity] = ""
    layout: Layout = "auto"
    num_classes: Annotated[int, Field(ge=0)] = 0

    eps = COLOR_EPS
    recipe: ClassVar[Mapping[str, object]] = {
        "architecture": "compact-cnn",
        "epochs": 15,
        "batch_size": 128,
        "lr": 0.001,
    }

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find the file or the files.

        Raises:
            RequestError: If none is named, or it is not there.
        """
        place = Path(self.path).expanduser() if self.path else next(iter(named_dirs(data_dir)), None)
        if place is None:
            raise RequestError("arrays: which file? name it with --data-dir FILE.npz or arrays[path=FILE.npz]")
        if place.is_dir():
            packed = sorted(place.glob("*.npz"))
            files = packed if len(packed) == 1 else sorted(place.glob("*.npy"))
            if not files:
                found = f"{len(packed)} npz files; name one of them" if packed else "no npz and no npy file"
                raise RequestError(f"arrays: {place} holds {found}")
        elif place.suffix == ".npy" and place.is_file():
            raise RequestError(
                f"arrays: {place} is one array; name an npz file, or the folder that holds images.npy and labels.npy"
            )
        elif place.is_file():
            files = [place]
        else:
            raise RequestError(f"arrays: {place} is not there")
        stats = [[file.name, status.st_size, status.st_mtime_ns] for file in files for status in [file.stat()]]
        return digest(stats), lambda: self._read(files)

    def _read(self, files: list[Path]) -> Raw:
        try:
            found = _contents(files)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RequestError(f"arrays: {files[0]} cannot be read ({error}); it must hold plain arrays") from error
        place = files[0] if len(files) == 1 else files[0].parent
        pairs = _pairs(found)
        if not pairs:
            raise RequestError(
                f'arrays: {place} holds {some(sorted(found)) or "nothing"}; name the arrays "images" and "labels", or '
                '"x_train", "y_train", "x_test" and "y_test"'
            )
        if len(pairs) == 1:
            pairs = [(*pairs[0][:2], False)]  # what stands alone is all there is to split, whatever it is called
        images = [_as_images(found[name], self.layout, f"{place}: {name}") for name, _, _ in pairs]
        labels = [_as_labels(found[name], f"{place}: {name}") for _, name, _ in pairs]
        for (name, other, _), part, own in zip(pairs, images, labels, strict=True):
            if len(part) != len(own):
                raise RequestError(f"arrays: {place}: {len(part)} {name} and {len(own)} {other}")
        if len({(part.dtype, part.shape[1:]) for part in images}) > 1:
            shapes = ", ".join(
                f"{name} {part.dtype} {part.shape}" for (name, *_), part in zip(pairs, images, strict=True)
            )
            raise RequestError(f"arrays: {place}: the parts differ: {shapes}")
        names = next((found[name] for name in _NAMES if name in found), None)
        every = np.concatenate(labels)
        if names is None and self.num_classes:
            names = np.arange(self.num_classes)
        indices, class_names = _classes(every, names, str(place))
        is_test = np.concatenate([np.full(len(part), test) for part, (*_, test) in zip(labels, pairs, strict=True)])
        joined: Any = np.concatenate(images)
        return Raw(joined, indices, class_names, is_test)


def _contents(files: Iterable[Path]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for path in files:
        # Opened here, since NumPy leaves open what it cannot read.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                found[path.stem] = loaded
            else:
                found |= {name: loaded[name] for name in loaded.files}
    return found


def _pairs(found: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Names of images and labels, part by part, each with whether they are test images."""
    pairs: list[tuple[str, str, bool]] = []
    for names, is_test in (*_PARTS, ((), False)):
        for part in names or ("",):
            images = _named(found, _IMAGES, part)
            labels = _named(found, _LABELS, part)
            if images and labels and (part or not pairs):
                pairs.append((images, labels, is_test))
    return pairs


def _named(found: Mapping[str, Any], names: Iterable[str], part: str) -> str | None:
    spelled = (spelling for name in names for spelling in ((f"{name}_{part}", f"{part}_{name}") if part else (name,)))
    return next((name for name in spelled if name in found), None)


def _as_images(array: NDArray[Any], layout: Layout, where: str) -> StoredImages:
    """Images as stored: uint8 or float32 in [0, 1], shape ``(N, C, H, W)``.

    Raises:
        RequestError: If their shape or range is not known.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        order = _order(array.shape, layout, where)
        array = array.transpose(0, 3, 1, 2) if order == "nhwc" else array
    else:
        raise RequestError(
            f"arrays: {where} has the shape {array.shape}; (N, H, W), (N, C, H, W) or (N, H, W, C) is needed"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).astype(np.uint8) * np.uint8(255)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype == np.uint16:
        return np.ascontiguousarray(array / np.float32(65535), dtype=np.float32)
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"arrays: {where} has {(~np.isfinite(array)).sum():,} values that are no finite numbers")
    raise RequestError(
        f"arrays: {where} is {array.dtype} from {low:g} to {high:g}; bytes from 0 to 255 or floats in [0, 1] are needed"
    )


def _order(shape: tuple[int, ...], layout: Layout, where: str) -> str:
    if layout != "auto":
        return layout
    seen = layout_seen(shape)
    if seen is None:
        raise RequestError(f"arrays: {where} has the shape {shape}; say where its channels are: layout=nchw or nhwc")
    return seen


def layout_seen(shape: tuple[int, ...]) -> Layout | None:
    """Where the channels of images stand, as far as their shape, of four numbers, tells."""
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    return None if first == last else "nchw" if first else "nhwc"


def _as_labels(array: NDArray[Any], where: str) -> NDArray[np.int64]:
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    whole = flat.ndim == 1 and (
        flat.dtype.kind in "iu" or (flat.dtype.kind == "f" and bool((flat == np.rint(flat)).all()))
    )
    if not whole:
        raise RequestError(
            f"arrays: {where} is {array.dtype} of shape {array.shape}; one whole number per image is needed"
        )
    return flat.astype(np.int64)


def _classes(
    labels: NDArray[np.int64], names: NDArray[Any] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class indices and class names; of the labels that occur, or of all that are named.

    Raises:
        RequestError: If there are more labels than names.
    """
    if names is None:
        values, indices = np.unique(labels, return_inverse=True)
        return indices.astype(np.int64), tuple(str(value) for value in values)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise RequestError(
            f"arrays: {where}: labels go from {labels.min()} to {labels.max()}; those of {len(names)} classes go from "
            f"0 to {len(names) - 1}{', so subtract 1' if (labels.min(), labels.max()) == (1, len(names)) else ''}"
        )
    return labels, tuple(str(name) for name in names)
