"""The user's own images in Parquet files, in the layout of Hugging Face's data sets."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robbench.core.component import NoIdentity
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.extras import require
from robbench.core.registry import register_dataset
from robbench.core.safe_text import one_line
from robbench.core.untrusted_files import parse_json
from robbench.data import lazy_images
from robbench.data.dataset import COLOR_EPS, COLOR_RECIPE, Dataset, Raw
from robbench.data.datasets._files import (
    DATA_VARIABLE,
    SPLITS,
    holds,
    named_dirs,
    shown,
    some,
    stamp,
    under,
    unread_remarks,
)
from robbench.data.datasets._image_decoding import read_header, read_image, square
from robbench.data.datasets._parquet_rows import image_content
from robbench.data.lazy_images import Indexed, LazyImages, indexed, joined_hashes, quiet
from robbench.results.schema import digest

_IMAGES = ("image", "img", "images", "picture", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "target", "y")
_BATCH = 64
_LARGEST = 2**32
"""Bytes that the images of one row group may have, unpacked."""
_TAKEN = re.compile(r"[A-Za-z]*")


@register_dataset("parquet", brief="your own images in Parquet files, as Hugging Face lays them out")
@dataclass(frozen=True)
class ParquetImages(Dataset):
    """Images and labels in Parquet files; needs the extra ``parquet``.

    One file, or a folder of them at any depth: ``train-00000-of-00002.parquet``, ``test-*``, ``validation-*``, or such
    names for their folders. Where there is no test, validation holds the test images; where there are both, those of
    validation are added to those of train, from which validation images are drawn. Files of no split are read where
    there are no others; what is not read is counted and named.

    A column holds the images' files as bytes, by themselves or as ``{bytes, path}``. Another holds labels: whole
    numbers or names. Names of classes are those that the files state, else the labels. Gray images keep their one
    channel where all of them are gray; transparency is dropped. Where they would take more than 1 GiB, they stay in
    their files, as those of ``image-folder`` do.

    Attributes:
        path: The file or folder; empty for the one given as data directory.
        size: Height and width to which images are scaled, the longer side cut; 0 for their own size.
        image_column: The column of images; empty where it shows.
        label_column: The column of labels; empty where it shows.
    """

    path: Annotated[str, NoIdentity] = ""
    size: Annotated[int, Field(ge=0)] = 0
    image_column: str = ""
    label_column: str = ""

    eps = COLOR_EPS
    recipe = COLOR_RECIPE

    def locate(self, data_dir: Path | None) -> tuple[str, Callable[[], Raw]]:
        """Find the files.

        Raises:
            RequestError: If none is named or there, or it cannot be told which are of which split.
        """
        place = Path(self.path).expanduser() if self.path else next(iter(named_dirs(data_dir)), None)
        if place is None:
            raise RequestError(
                f"parquet: which file or folder? name it with --data-dir DIR, the variable {DATA_VARIABLE} or "
                "parquet[path=DIR]"
            )
        if place.is_file():
            root = place.parent
            with os.scandir(root) as entries:
                chosen = _Chosen([(entry, False) for entry in entries if entry.name == place.name], ())
        elif place.is_dir():
            root, chosen = place, _choose(place)
        else:
            raise RequestError(f"parquet: {place} is not there")
        files = [file for file, _ in chosen.files]
        # What stays in its files is found there again, and has to be indexed anew where they were moved.
        folder = os.path.abspath(root)
        return digest([stamp(root, files), chosen.remarks, folder]), lambda: self._read(Path(folder), root, chosen)

    def _read(self, folder: Path, root: Path, chosen: _Chosen) -> Raw:
        parquet = require("pyarrow.parquet", "parquet", "the data set parquet")
        read = _Reading(self, folder)
        for step in (read.count, read.take):
            for entry, is_test in chosen.files:
                try:
                    with quiet(), parquet.ParquetFile(entry.path, pre_buffer=False) as file:
                        step(file, entry.path[len(str(root)) + 1 :], is_test)
                except RequestError as error:
                    raise RequestError(f"parquet: {root}: {error}") from None
                except Exception as error:  # readers raise almost anything on damaged files
                    reason = one_line(error) or type(error).__name__
                    raise RequestError(f"parquet: {entry.path} cannot be read ({reason}); replace it") from error
        try:
            return read.raw(chosen.remarks)
        except RequestError as error:
            raise RequestError(f"parquet: {root}: {error}") from None


@dataclass(frozen=True)
class _Chosen:
    """The files to read, each with whether it holds test images, and what to say of the choice."""

    files: Sequence[tuple[os.DirEntry[str], bool]]
    remarks: tuple[str, ...]


def _choose(root: Path) -> _Chosen:
    """The Parquet files in a folder by their splits."""
    found = sorted(under(root), key=lambda entry: entry.path)
    files = [entry for entry in found if holds(entry.is_file) and entry.name.lower().endswith(".parquet")]
    if not files:
        beside = f"; it holds {some([shown(entry.name) for entry in found])}" if found else ""
        raise RequestError(f"parquet: {root} holds no .parquet file{beside}")
    splits: dict[str, list[os.DirEntry[str]]] = {}
    folders: dict[str, None] = {}
    for entry in files:
        split, folder = _split(entry, root)
        if split:
            splits.setdefault(split, []).append(entry)
            folders[shown(folder[len(str(root)) + 1 :]) or "."] = None
    if len(folders) > 1:
        raise RequestError(f"parquet: {root} holds files of splits in {some([*folders])}; name one of these folders")
    if splits and "train" not in splits:
        raise RequestError(f"parquet: {root} holds {some(sorted(splits))} and no train")
    parts = [entry for part in splits.values() for entry in part] or files
    unread = [entry for entry in found if entry not in parts]
    remarks = unread_remarks(root, unread, "those of splits" if splits else "those of Parquet files")
    if "validation" not in splits:
        return _Chosen([(entry, entry in splits.get("test", ())) for entry in parts], remarks)
    if "test" in splits:
        remarks += ("validation images are added to those of train; validation images are drawn from both",)
    else:
        remarks += ("there is no test: validation holds the test images",)
    tests = splits.get("test", splits["validation"])
    return _Chosen([(entry, entry in tests) for entry in parts], remarks)


def _split(entry: os.DirEntry[str], root: Path) -> tuple[str | None, str]:
    """The split that a file is of by its name, or by that of its folder, with the folder that holds the splits."""
    folder, name = os.path.split(entry.path)
    own = _TAKEN.match(name)
    split = SPLITS.get(own[0].lower()) if own else None
    if split or folder == str(root):
        return split, folder
    above, name = os.path.split(folder)
    return SPLITS.get(name.lower()), above


@dataclass
class _Reading:
    """What was read so far."""

    asked: ParquetImages
    root: Path
    rows: int = 0
    large: bool | None = None
    columns: tuple[str, str, bool] | None = None
    names: tuple[str, ...] | None = None
    gray: bool = True
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    index: list[Indexed] = field(default_factory=list)
    places: list[tuple[bytes, int]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    is_test: list[bool] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def count(self, file: Any, path: str, is_test: bool) -> None:
        """Count the rows of a file, on which it depends whether images are decoded or indexed."""
        self.rows += file.metadata.num_rows

    def take(self, file: Any, path: str, is_test: bool) -> None:
        """Read a file, a few rows at a time."""
        name = shown(path)
        schema = file.schema_arrow
        features = _features(schema.metadata)
        image, label = _columns(schema, features, self.asked, name)
        names = features.get(label, {}).get("names")
        stated = tuple(map(str, names)) if isinstance(names, list) else None
        found = (image, label, _is_text(schema.field(label).type))
        if self.columns is not None and (found, stated) != (self.columns, self.names):
            raise RequestError(f"{name} has other columns or other classes than the file before it")
        self.columns, self.names = found, stated
        _check_size(file.metadata, image, name)
        row = 0
        with ThreadPoolExecutor() as pool:
            for batch in file.iter_batches(_BATCH, columns=[image, label]):
                places = [f"{name}#{row + at}" for at in range(len(batch))]
                self.labels += _values(batch.column(label), places)
                contents = list(map(image_content, batch.column(image).to_pylist(), places))
                if self.large is None and contents:
                    size = self.asked.size
                    height, width = (size, size) if size else read_header(contents[0], places[0]).size
                    self.large = self.rows * 3 * height * width > lazy_images.RESIDENT
                if self.large:
                    self.index += pool.map(indexed, contents, places)
                    self.places += [(os.fsencode(path), row + at) for at in range(len(batch))]
                else:
                    decoded = list(pool.map(self._decoded, contents, places))
                    self.gray = self.gray and all(gray for _, gray in decoded)
                    self.images += [array for array, _ in decoded]
                self.files += places
                row += len(batch)
        self.is_test += [is_test] * row

    def _decoded(self, content: bytes, place: str) -> tuple[NDArray[np.uint8], bool]:
        image, gray, _ = read_image(io.BytesIO(content), place)
        array = np.asarray(square(image, self.asked.size) if self.asked.size else image).transpose(2, 0, 1)
        return (array[:1] if gray else array).copy(), gray

    def raw(self, remarks: tuple[str, ...]) -> Raw:
        """Everything that was read."""
        if not self.labels:
            raise RequestError("there are no rows")
        shapes = {array.shape[1:] for array in self.images} | {one.header.size for one in self.index}
        if self.large and self.asked.size:
            shapes = {(self.asked.size, self.asked.size)}
        if len(shapes) > 1:
            raise RequestError("the images differ in size; scale them, as in parquet[size=64]")
        labels, names, missing = _classes(self.labels, self.names)
        if missing:
            remarks += (f"{len(missing)} classes have no images and are left out: {some(missing)}",)
        shape = (1 if self.gray and all(one.header.gray for one in self.index) else 3, *shapes.pop())
        images = self._indexed(shape) if self.large else self._joined(shape)
        is_test = np.array(self.is_test, dtype=np.bool_)
        return Raw(images, labels, names, is_test, remarks, np.array(self.files))

    def _joined(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        images = np.empty((len(self.images), *shape), dtype=np.uint8)
        for at in range(len(images)):
            # Gray among color is repeated; what was copied is let go, so that memory holds the images once.
            images[at], self.images[at] = self.images[at], images[at]
        return images

    def _indexed(self, shape: tuple[int, int, int]) -> LazyImages:
        assert self.columns is not None
        paths, rows = zip(*self.places, strict=True)
        hashes = joined_hashes(self.index)
        return LazyImages(self.root, np.array(paths), hashes, (len(rows), *shape), np.array(rows), self.columns[0])


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What Hugging Face states of the columns; nothing where it states nothing that is understood."""
    try:
        stated = parse_json((metadata or {})[b"huggingface"].decode())["info"]["features"]
        return {str(name): found for name, found in stated.items() if isinstance(found, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _columns(schema: Any, features: Mapping[str, Any], asked: ParquetImages, name: str) -> tuple[str, str]:
    """The columns of images and labels."""
    types = {column: schema.field(column).type for column in dict.fromkeys(schema.names)}
    for wanted in (asked.image_column, asked.label_column):
        if wanted and wanted not in types:
            raise RequestError(f'{name} has no column "{wanted}"; {did_you_mean(wanted, types)}')
    images = [column for column, kind in types.items() if _holds_files(kind)]
    labels = [column for column in types if features.get(column, {}).get("_type") == "ClassLabel"]
    image = _one(images, _IMAGES, asked.image_column, types, f"{name}: image_column")
    labels = labels or [column for column, kind in types.items() if column != image and _is_label(kind)]
    if asked.label_column and _is_label(types[asked.label_column]):
        return image, asked.label_column
    return image, _one(labels, _LABELS, asked.label_column, types, f"{name}: label_column")


def _one(found: Sequence[str], usual: Sequence[str], asked: str, types: Mapping[str, Any], where: str) -> str:
    """The column that is asked for, the only one, or the one with the most usual name."""
    wanted = asked or (found[0] if len(found) == 1 else next((name for name in usual if name in found), ""))
    if wanted in found:
        return wanted
    if asked:
        raise RequestError(f'{where}: "{asked}" holds {types[asked]}, which is of another kind')
    what = f"it could be {some(found)}" if found else f"there is none among {some([*types])}"
    raise RequestError(f"{where}: {what}; name it, as in parquet[{where.rpartition(' ')[2]}=NAME]")


def _holds_files(kind: Any) -> bool:
    types = require("pyarrow.types", "parquet", "the data set parquet")
    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_files(kind.field(position).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    types = require("pyarrow.types", "parquet", "the data set parquet")
    plain = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(plain) or types.is_boolean(plain)) or _is_text(plain)


def _is_text(kind: Any) -> bool:
    types = require("pyarrow.types", "parquet", "the data set parquet")
    plain = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(plain) or types.is_large_string(plain))


def _check_size(metadata: Any, image: str, name: str) -> None:
    """Refuse what would not fit in memory while it is read."""
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        columns = (found.column(at) for at in range(found.num_columns))
        size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] == image)
        if size > _LARGEST:
            raise RequestError(f"{name}: row group {group} has {size:,} bytes of images, more than {_LARGEST:,}")


def _values(column: Any, places: Sequence[str]) -> Iterator[int | str]:
    for value, place in zip(column.to_pylist(), places, strict=True):
        if value is None:
            raise RequestError(f"{place} has no label")
        yield int(value) if isinstance(value, bool) else value


def _classes(
    labels: Sequence[Any], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
    """Class indices, names of the classes that have images, and of stated ones that have none.

    Raises:
        RequestError: If a number has no name.
    """
    values, indices = np.unique(np.array(labels), return_inverse=True)
    found = values.tolist()
    if names is None or isinstance(found[0], str):
        return indices.astype(np.int64), tuple(map(str, found)), []
    odd = next((value for value in found if not 0 <= value < len(names)), None)
    if odd is not None:
        raise RequestError(f"there is a label {odd}, and names of {len(names)} classes")
    present = {*found}
    missing = [name for at, name in enumerate(names) if at not in present]
    return indices.astype(np.int64), tuple(names[value] for value in found), missing
