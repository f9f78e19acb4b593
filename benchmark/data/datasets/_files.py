"""What data sets that are read from files share: where to look, listing folders of images, decoding them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.data.dataset import Raw
from robbench.results.schema import digest

DATA_VARIABLE = "ROBBENCH_DATA"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CHUNK = 32
_LARGE = 16_384


def download_dir(data_dir: Path | None) -> Path:
    """Where downloads go: the directory for data that the user names, or the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return data_dir or Path(home) / "robbench"


def roots(data_dir: Path | None) -> tuple[Path, ...]:
    """Where data is looked for, in this order: ``data_dir``, the directory in ``ROBBENCH_DATA``, earlier downloads."""
    named = os.environ.get(DATA_VARIABLE)
    places = (data_dir, Path(named) if named else None, download_dir(data_dir))
    return tuple(dict.fromkeys(place for place in places if place is not None))


def download(name: str, wanted: str, places: Sequence[Path], target: Path, fetch: Callable[[Path], object]) -> None:
    """Download a data set that was not found.

    Args:
        name: Name of the data set, for the message.
        wanted: Which files were looked for, for the message.
        places: Where they were looked for.
        target: Directory to download to.
        fetch: What downloads to a directory.

    Raises:
        RequestError: If that fails: what was looked for where, and what to do.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        fetch(target)
    except Exception as error:
        looked = ", ".join(str(place) for place in places)
        raise RequestError(
            f"{name} was not found: no {wanted} in {looked}; and it could not be downloaded to {target} ({error}); "
            f"name the directory that holds it with --data-dir or the variable {DATA_VARIABLE}"
        ) from error


def stamp(root: Path, files: Sequence[os.DirEntry[str]]) -> str:
    """A text that changes when one of the files under a directory does: names, sizes, times of change."""
    lines = []
    for file in files:
        status = file.stat()
        lines.append([file.path[len(str(root)) :], status.st_size, status.st_mtime_ns])
    return digest(lines)


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their classes.

    Attributes:
        root: Directory that holds them all.
        files: The files, class by class, by name within a class.
        labels: Class indices, int64, one per file.
        is_test: Which of them are test images, bool, one per file.
        class_names: Names of the classes.
    """

    root: Path
    files: tuple[os.DirEntry[str], ...]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_]
    class_names: tuple[str, ...]

    def stamp(self) -> str:
        """A text that changes when one of the files does."""
        return stamp(self.root, self.files)

    def decode(self, size: int) -> Raw:
        """The images, scaled to a height and width of ``size``.

        Raises:
            RequestError: If a file cannot be read as an image, naming it.
        """
        images = np.empty((len(self.files), 3, size, size), dtype=np.uint8)

        def fill(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(images))):
                images[i] = decode_image(self.files[i].path, size)

        # Decoders release the interpreter's lock, which pays for photographs and not for thumbnails.
        large = sum(file.stat().st_size for file in self.files) > _LARGE * len(self.files)
        with ThreadPoolExecutor(None if large else 1) as pool:
            list(pool.map(fill, range(0, len(images), _CHUNK)))
        return Raw(images, self.labels, self.class_names, self.is_test)


def list_images(root: Path, class_names: Sequence[str], parts: Sequence[tuple[str, bool]]) -> ImageFiles:
    """The images in folders of classes, at any depth.

    Args:
        root: Directory that holds the parts.
        class_names: Names of the folders in each part; their order is that of the class indices.
        parts: Folders under ``root`` that hold class folders, each with whether its images are test images.
    """
    files, labels, is_test = [], [], []
    for part, test in parts:
        for label, name in enumerate(class_names):
            found = sorted(_images_under(root / part / name), key=lambda file: file.path)
            files += found
            labels += [label] * len(found)
            is_test += [test] * len(found)
    return ImageFiles(
        root, tuple(files), np.array(labels, dtype=np.int64), np.array(is_test, dtype=np.bool_), tuple(class_names)
    )


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out.

    Raises:
        RequestError: If the folder cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error


def _images_under(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _images_under(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield entry


def decode_image(path: str | Path, size: int) -> NDArray[np.uint8]:
    """An image file in color, its shorter side scaled to ``size`` and the middle of the longer one kept.

    Gray images become color by repetition, transparency is dropped, 16 bits are reduced to 8, the first frame of
    several is taken, and a camera's note about how it was held is obeyed.

    Returns:
        uint8, shape ``(3, size, size)``.

    Raises:
        RequestError: If it is no image, damaged or truncated.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I"):
                upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
            color = upright.convert("RGB")
            if color.size != (size, size):
                color = ImageOps.fit(color, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(color).transpose(2, 0, 1)
    except Exception as error:  # decoders raise almost anything on damaged files
        raise RequestError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
