"""What figures need beside records and outcomes: images, histories of training and embeddings, read from a store."""

from __future__ import annotations

import csv
import inspect
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import StoreError
from robbench.results.schema import CellResult, Floats, Ints

if TYPE_CHECKING:
    from robbench.results.store import Store

Singles = NDArray[np.float32]

ModelPlace: TypeAlias = tuple[str, int]
"""Label of a row, and seed."""
CellPlace: TypeAlias = tuple[str, str, int]
"""Label of a row, label of a condition, and seed."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class History:
    """How training went, an entry per epoch; where it diverged, with losses that are not finite.

    Attributes:
        epochs: From 1 on, shape ``(E,)``.
        train_loss, validation_loss: Shape ``(E,)``.
        train_accuracy, validation_accuracy: Shares in [0, 1], shape ``(E,)``.
    """

    epochs: Ints
    train_loss: Floats
    validation_loss: Floats
    train_accuracy: Floats
    validation_accuracy: Floats


@dataclass(frozen=True)
class ExhibitedImages:
    """Some training images.

    Attributes:
        images: uint8, or float32 in [0, 1], shape ``(M, C, H, W)``.
        labels: Their classes, int64, shape ``(M,)``.
    """

    images: NDArray[np.uint8] | Singles
    labels: Ints


@dataclass(frozen=True)
class Examples:
    """Some of the samples that a condition was applied to, before and after.

    Attributes:
        ids: Sample ids, int64, shape ``(n,)``.
        labels: True classes, int64, shape ``(n,)``.
        images: Before, uint8, or float32 in [0, 1], shape ``(n, C, H, W)``.
        attacked: After, float32 in [0, 1], shape ``(n, C, H, W)``.
        clean: Predictions before, shape ``(n,)``.
        final: Predictions after, shape ``(n,)``.
        clean_scores, final_scores: Softmax of the model's scores, float32, shape ``(n, K)``; older files lack them.
    """

    ids: Ints
    labels: Ints
    images: NDArray[np.uint8] | Singles
    attacked: Singles
    clean: Ints
    final: Ints
    clean_scores: Singles | None = None
    final_scores: Singles | None = None


@dataclass(frozen=True)
class Embeddings:
    """What the backbone makes of some images.

    Attributes:
        ids: Sample ids, int64, shape ``(n,)``.
        labels: True classes, int64, shape ``(n,)``.
        embeddings: float32, shape ``(n, D)``.
    """

    ids: Ints
    labels: Ints
    embeddings: Singles


@dataclass(frozen=True)
class FigureFiles(Mapping[K, V]):
    """Values that are read from their files each time they are asked for.

    Attributes:
        paths: The files that are there.
        read: What makes a value of a file; its errors become a ``StoreError`` that names the file.
    """

    paths: Mapping[K, Path]
    read: Callable[[Path], V]

    def __getitem__(self, key: K) -> V:
        """The value of one key.

        Raises:
            KeyError: If there is no file for it.
            StoreError: If the file is damaged.
        """
        path = self.paths[key]
        try:
            return self.read(path)
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StoreError(f"cannot read {path}: {error}; remove it to go without its figures") from error

    def __iter__(self) -> Iterator[K]:
        """The keys whose files are there."""
        return iter(self.paths)

    def __len__(self) -> int:
        """How many files are there."""
        return len(self.paths)


@dataclass(frozen=True)
class Materials:
    """What there is to draw from beside records and outcomes; where something is missing, there is no figure of it.

    Attributes:
        samples: Some training images of each class.
        histories: By label of the row and seed.
        examples: By label of the row, label of the condition, and seed.
        train: Embeddings of training images, by label of the row and seed.
        test: Embeddings of test images after a condition, by label of the row, label of the condition, and seed.
    """

    samples: ExhibitedImages | None
    histories: Mapping[ModelPlace, History]
    examples: Mapping[CellPlace, Examples]
    train: Mapping[ModelPlace, Embeddings]
    test: Mapping[CellPlace, Embeddings]


NOTHING = Materials(None, {}, {}, {}, {})


def read_materials(store: Store, exhibit: str | None, cells: Sequence[CellResult]) -> Materials:
    """What a store keeps for the figures of a board; the files are looked for now, and read when they are drawn.

    Args:
        store: The store.
        exhibit: Name of the sample images under ``exhibits/``, or None.
        cells: The board's records with their outcomes.

    Raises:
        StoreError: If the sample images are damaged.
    """
    models: dict[ModelPlace, Path] = {}
    places: dict[CellPlace, Path] = {}
    for record, _ in cells:
        spec = record.spec
        models[spec.model.label, spec.seed] = store.model_dir(spec.model_key)
        places[spec.model.label, spec.condition.label, spec.seed] = store.cell_dir(record.key)
    samples = FigureFiles(_there({exhibit: store.root / "exhibits"}, f"{exhibit}.npz"), _arrays(store, ExhibitedImages))
    return Materials(
        samples=samples.get(exhibit),
        histories=FigureFiles(_there(models, "history.csv"), lambda path: _history(store.content(path))),
        examples=FigureFiles(_there(places, "examples.npz"), _arrays(store, Examples)),
        train=FigureFiles(_there(models, "embeddings.npz"), _arrays(store, Embeddings)),
        test=FigureFiles(_there(places, "embeddings.npz"), _arrays(store, Embeddings)),
    )


def _there(folders: Mapping[K, Path], name: str) -> dict[K, Path]:
    paths = {key: folder / name for key, folder in folders.items()}
    return {key: path for key, path in paths.items() if path.is_file()}


def _arrays(store: Store, kind: Callable[..., V]) -> Callable[[Path], V]:
    names = inspect.signature(kind).parameters

    def read(path: Path) -> V:
        with np.load(io.BytesIO(store.content(path)), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in names}
        if len({len(array) for array in found.values()}) > 1:
            raise ValueError("its arrays are of different lengths")
        return kind(**found)

    return read


def _history(content: bytes) -> History:
    lines: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    if not lines:
        raise ValueError("it has no epoch")
    return History(
        epochs=np.array([int(line["epoch"]) for line in lines], dtype=np.int64),
        **{
            name: np.array([float(line[name]) for line in lines])
            for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
        },
    )
