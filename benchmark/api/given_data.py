"""Images as they are handed over: names, files, arrays, tensors and data sets of torch, as a grid asks for them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.data.datasets.arrays import layout_seen
from robbench.planning.component_spec import read_text

_FILES = {".npz": "arrays", ".npy": "arrays", ".parquet": "parquet"}


def asked_data(data: object, root: Path, registry: Registry) -> dict[str, Any]:
    """A data set as a grid asks for it.

    A name of a data set means the data set, whatever folder lies here; ``./name`` means the folder.

    Args:
        data: A name, a file, a folder, a table as in a grid, a pair of images and labels, or a data set of such pairs.
        root: The store, in which arrays are kept.
        registry: The known data sets.

    Raises:
        RequestError: If it is none of them.
    """
    if isinstance(data, dict):
        return data
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.suffix in _FILES and (path.exists() or isinstance(data, Path)):
            return {"name": _FILES[path.suffix], "path": str(path.absolute())}
        if path.is_dir() and (isinstance(data, Path) or "/" in data or data not in registry.entries("dataset")):
            kinds = {_FILES[file.suffix] for file in path.iterdir() if file.suffix in _FILES}
            return {"name": next(iter(sorted(kinds)), "image-folder"), "path": str(path.absolute())}
        if path.suffix and not path.exists() and "[" not in str(data):
            raise RequestError(f'"{data}" is not there', "data")
        name, given = read_text(str(data), "data")
        return {"name": name, **given}
    images, labels, tensors = _arrays(data)
    # Channels come first in tensors; in arrays the shape has to show it.
    first = tensors and images.ndim == 4 and layout_seen(images.shape) is None
    layout = {"layout": "nchw"} if first else {}
    return {"name": "arrays", "path": str(_kept(images, labels, root)), "label": "images", **layout}


def _arrays(data: object) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Images and labels as arrays, and whether the images were tensors.

    Raises:
        RequestError: If they are none.
    """
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple):
        images, labels = data
        return _pixels(images), np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels), _is_tensor(images)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise RequestError(
            f"{type(data).__name__} is no data: name a data set or a file, or hand over (images, labels)", "data"
        )
    pairs = [data[index] for index in range(len(data))]
    if not all(isinstance(pair, tuple | list) and len(pair) >= 2 for pair in pairs):
        raise RequestError("a data set gives pairs of an image and a label", "data")
    parts = [_pixels(pair[0]) for pair in pairs]
    shapes = list(dict.fromkeys(part.shape for part in parts))
    if len(shapes) != 1:
        shown = "no image" if not shapes else f"images of several shapes, as {shapes[0]} and {shapes[1]}"
        raise RequestError(f"it holds {shown}; give images of one shape", "data")
    return np.stack(parts), np.array([int(pair[1]) for pair in pairs]), all(_is_tensor(pair[0]) for pair in pairs)


def _is_tensor(images: object) -> bool:
    return hasattr(images, "detach")


def _pixels(images: Any) -> NDArray[Any]:
    """A tensor, an array or a picture as an array; pictures become channels, height and width."""
    if _is_tensor(images):
        images = images.detach().cpu()
        # NumPy has no bfloat16.
        images = images if images.element_size() != 2 or not images.is_floating_point() else images.float()
    array = np.asarray(images)
    if hasattr(images, "getbands"):
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array


def _kept(images: NDArray[Any], labels: NDArray[Any], root: Path) -> Path:
    """Keep arrays in a store, named after their content, so that they are found again."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels)
    content = buffer.getvalue()
    path = root / "data" / f"given-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path
