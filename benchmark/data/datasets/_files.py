"""What data sets that are read from files share: where to look, listing folders of images, decoding them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.data import lazy_images
from robbench.data.dataset import Raw
from robbench.data.datasets._image_decoding import pixels, read_image
from robbench.data.lazy_images import Indexed, LazyImages, indexed, joined_hashes, quiet
from robbench.results.schema import digest
from robbench.results.store import is_store

DATA_VARIABLE = "ROBBENCH_DATA"
IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders and files of splits are called, in small letters."""
_CLUTTER = ("desktop.ini", "thumbs.db")
"""Files that systems leave behind; so are those whose name begins with a dot."""
_NAMED = 3
"""Offending files that a message names; of the others it says how many there are."""
_NO_FILES = "no regular files"
"""Links to what is not there, pipes and the like."""
_CHUNK = 32
_LARGE = 16_384

T = TypeVar("T")


def download_dir(data_dir: Path | None) -> Path | None:
    """Where downloads go: the directory that the user names, or the user's cache directory, if there is one."""
    if data_dir is not None:
        return data_dir
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "robbench"
    except RuntimeError:  # no HOME, and a user whom the system does not know
        return None


def named_dirs(data_dir: Path | None) -> tuple[Path, ...]:
    """Where the user says that data lies: ``data_dir`` and the directory in ``ROBBENCH_DATA``."""
    named = os.environ.get(DATA_VARIABLE)
    return tuple(
        dict.fromkeys(place for place in (data_dir, Path(named).expanduser() if named else None) if place is not None)
    )


def roots(data_dir: Path | None) -> tuple[Path, ...]:
    """Where data is looked for, in this order: ``data_dir``, the directory in ``ROBBENCH_DATA``, earlier downloads."""
    downloads = download_dir(data_dir)
    return tuple(dict.fromkeys((*named_dirs(data_dir), *([downloads] if downloads else []))))


def download(
    name: str, wanted: str, places: Sequence[Path], data_dir: Path | None, fetch: Callable[[Path], object]
) -> Path:
    """Download a data set that was not found.

    Args:
        name: Name of the data set, for the message.
        wanted: Which files were looked for, for the message.
        places: Where they were looked for.
        data_dir: Where the user says that data lies.
        fetch: What downloads to a directory.

    Returns:
        The directory that it was downloaded to.

    Raises:
        RequestError: If that fails: what was looked for where, and what to do.
    """
    target = download_dir(data_dir)
    if target is None:
        looked = f" in {', '.join(map(str, places))}" if places else ""
        raise RequestError(
            f"{name} was not found: no {wanted}{looked}; and there is no home directory to download it to; name a "
            f"directory with --data-dir or the variable {DATA_VARIABLE}"
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        fetch(target)
    except Exception as error:
        looked = ", ".join(str(place) for place in places)
        raise RequestError(
            f"{name} was not found: no {wanted} in {looked}; and it could not be downloaded to {target} ({error}); "
            f"name the directory that holds it with --data-dir or the variable {DATA_VARIABLE}"
        ) from error
    return target


def stamp(root: Path, files: Sequence[os.DirEntry[str]]) -> str:
    """A text that changes when one of the files under a directory does: names, sizes, times of change."""
    lines = []
    for file in files:
        status = file.stat()
        lines.append([file.path[len(str(root)) :], status.st_size, status.st_mtime_ns])
    return digest(lines)


def shown(name: str) -> str:
    """A file's name as text: composed Unicode, and bytes that are no UTF-8 as ``\\xe9``."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are beside them."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their classes.

    Attributes:
        root: Directory that holds them all.
        files: The files, class by class, by name within a class.
        labels: Class indices, int64, one per file.
        is_test: Which of them are test images, bool, one per file.
        class_names: Names of the classes.
        unread: Files and folders beside them that are not read.
    """

    root: Path
    files: tuple[os.DirEntry[str], ...]
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_]
    class_names: tuple[str, ...]
    unread: tuple[os.DirEntry[str], ...] = ()

    def stamp(self) -> str:
        """A text that changes when one of the files does, or others that are not read come or go."""
        return digest([stamp(self.root, self.files), self._remarks()])

    def read(self, size: int, remarks: Sequence[str] = ()) -> Raw:
        """The images, scaled to a height and width of ``size``: decoded, or where they are large indexed.

        Args:
            size: Height and width.
            remarks: What the data set's user should know besides.

        Raises:
            RequestError: If files cannot be read as images, naming them.
        """
        return self._indexed(size, remarks) if self.large(size) else self.decode(size, remarks)

    def large(self, size: int) -> bool:
        """Whether the images, scaled to a height and width of ``size``, stay in their files."""
        return 3 * size * size * len(self.files) > lazy_images.RESIDENT

    def decode(self, size: int, remarks: Sequence[str] = ()) -> Raw:
        """The images decoded; see ``read``."""
        images = np.empty((len(self.files), 3, size, size), dtype=np.uint8)

        def fill(i: int) -> bool:
            picture = read_image(self.files[i].path, self.files[i].path)
            images[i] = pixels(picture.image, size)
            return picture.several

        return self._raw(images, self._each(fill), remarks)

    def _indexed(self, size: int, remarks: Sequence[str]) -> Raw:
        def look(i: int) -> Indexed:
            with open(self.files[i].path, "rb") as file:
                return indexed(file.read(), self.files[i].path)

        found = self._each(look)
        root = Path(os.path.abspath(self.root))
        paths = np.array([os.fsencode(file.path[len(str(self.root)) + 1 :]) for file in self.files])
        rows = np.full(len(paths), -1)
        images = LazyImages(root, paths, joined_hashes(found), (len(paths), 3, size, size), rows)
        return self._raw(images, [one.header.several for one in found], remarks)

    def _each(self, step: Callable[[int], T]) -> list[T]:
        """What a step gives for each file.

        Raises:
            RequestError: If it raises that or ``OSError``, naming the files.
        """
        damaged: dict[int, str] = {}
        found: dict[int, T] = {}

        def several(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(self.files))):
                try:
                    found[i] = step(i)
                except (RequestError, OSError) as error:
                    damaged[i] = str(error)

        # Decoders release the interpreter's lock, which pays for photographs and not for thumbnails.
        large = sum(file.stat().st_size for file in self.files) > _LARGE * len(self.files)
        with quiet(), ThreadPoolExecutor(None if large else 1) as pool:
            list(pool.map(several, range(0, len(self.files), _CHUNK)))
        if damaged:
            more = [f"and {len(damaged) - _NAMED} more such files"] * (len(damaged) > _NAMED)
            raise RequestError("; ".join([*(damaged[i] for i in sorted(damaged)[:_NAMED]), *more]))
        return [found[i] for i in range(len(self.files))]

    def _raw(self, images: NDArray[np.uint8] | LazyImages, several: Sequence[bool], remarks: Sequence[str]) -> Raw:
        names = [shown(file.path[len(str(self.root)) + 1 :]) for file in self.files]
        found = [*remarks, *self._remarks()]
        first = [name for name, more in zip(names, several, strict=True) if more]
        if first:
            found.append(f"{len(first)} files hold several images, of which the first is read: {some(first)}")
        return Raw(images, self.labels, self.class_names, self.is_test, tuple(found), np.array(names))

    def _remarks(self) -> tuple[str, ...]:
        return unread_remarks(self.root, self.unread, "those of images")


def unread_remarks(root: Path, unread: Sequence[os.DirEntry[str]], wanted: str) -> tuple[str, ...]:
    """What to say of files that are not read: how many of each kind, and some of their names.

    Args:
        root: Directory that holds them.
        unread: The files and folders.
        wanted: What their names are not, as in ``those of images``.
    """
    if not unread:
        return ()
    kinds = Counter(map(_kind, unread))
    counted = ", ".join(f"{count} {shown(kind)}" for kind, count in kinds.most_common(_NAMED + 2))
    names = some([shown(entry.path[len(str(root)) + 1 :]) for entry in unread])
    reason = f"their names are not {wanted}" + f" or they are {_NO_FILES}" * (_NO_FILES in kinds)
    return (f"{len(unread)} files are not read, since {reason} ({counted}): {names}",)


def _kind(entry: os.DirEntry[str]) -> str:
    if holds(entry.is_dir):
        return "folders"
    return os.path.splitext(entry.name)[1].lower() or "no suffix" if holds(entry.is_file) else _NO_FILES


def list_images(root: Path, classes: Sequence[str], parts: Sequence[tuple[str, bool]]) -> ImageFiles:
    """The images in folders of classes, at any depth.

    Args:
        root: Directory that holds the parts.
        classes: Names of the classes, which are those of the folders in each part as ``shown``; their order is that of
            the class indices.
        parts: Folders under ``root`` that hold class folders, each with whether its images are test images.
    """
    files: list[os.DirEntry[str]] = []
    unread: list[os.DirEntry[str]] = []
    labels: list[int] = []
    is_test: list[bool] = []
    for part, test in parts:
        folders = subfolders(root / part)
        for label, name in enumerate(classes):
            found: list[os.DirEntry[str]] = []
            for entry in under(folders[name]) if name in folders else ():
                (found if is_image(entry) else unread).append(entry)
            found.sort(key=lambda file: file.path)
            files += found
            labels += [label] * len(found)
            is_test += [test] * len(found)
        unread += [entry for entry in entries(root / part) if not (holds(entry.is_dir) or is_clutter(entry))]
    return ImageFiles(
        root,
        tuple(files),
        np.array(labels, dtype=np.int64),
        np.array(is_test, dtype=np.bool_),
        tuple(classes),
        tuple(sorted(unread, key=lambda entry: entry.path)),
    )


def subfolders(folder: Path) -> dict[str, str]:
    """Paths of the folders in a folder by their names as ``shown``, sorted; hidden ones are left out.

    Raises:
        RequestError: If the folder cannot be read, two names are the same text, a link leads back to the folder itself
            or to one above it, or it makes one folder two.
    """
    found: dict[str, str] = {}
    places: dict[Path, str] = {}
    for entry in sorted(entries(folder), key=lambda entry: entry.name):
        if holds(entry.is_dir):
            place = Path(entry.path).resolve()
            if folder.resolve().is_relative_to(place):
                raise RequestError(f"{shown(entry.path)} is a link that leads back to where it lies; remove it")
            if place in places:
                raise RequestError(f'{folder}: "{places[place]}" and "{shown(entry.name)}" are the same folder')
            places[place] = shown(entry.name)
            if shown(entry.name) in found:
                raise RequestError(f'{folder} holds two folders whose names are both written "{shown(entry.name)}"')
            found[shown(entry.name)] = entry.path
    return found


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What lies in a folder, hidden things left out.

    Raises:
        RequestError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}") from error


def holds(question: Callable[[], bool]) -> bool:
    """Whether an entry is a file, or a folder; a link that leads to itself is neither."""
    try:
        return question()
    except OSError:
        return False


def is_clutter(entry: os.DirEntry[str]) -> bool:
    """Whether a system left the file there; nobody misses it."""
    return entry.name.lower() in _CLUTTER


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether its name is that of an image file."""
    return holds(entry.is_file) and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES


def under(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and those below it, hidden things and what systems leave behind left out."""
    for entry in entries(folder):
        if entry.is_dir(follow_symlinks=False):
            # A store of robbench holds figures, which are no images of the class.
            yield from () if is_store(Path(entry.path)) else under(entry.path)
        elif not is_clutter(entry):
            yield entry
