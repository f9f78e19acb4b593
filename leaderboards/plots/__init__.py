"""Figures of boards, drawn from what the board says, from outcomes, and from what else the store keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.leaderboards.artifact_reader import Materials
from robbench.leaderboards.board import Board
from robbench.leaderboards.figure_manifest import Picture, write_manifest
from robbench.leaderboards.plots.classes import classes
from robbench.leaderboards.plots.confusion import confusion
from robbench.leaderboards.plots.counts import counts
from robbench.leaderboards.plots.embeddings import embeddings
from robbench.leaderboards.plots.examples import examples
from robbench.leaderboards.plots.learning_rates import learning_rates
from robbench.leaderboards.plots.noise import noise
from robbench.leaderboards.plots.ranking import ranking
from robbench.leaderboards.plots.rounding import rounding
from robbench.leaderboards.plots.samples import samples
from robbench.leaderboards.plots.scene import Scene, Sketch
from robbench.leaderboards.plots.strength import sizes, strength
from robbench.leaderboards.plots.style import Fonts, encode, style
from robbench.leaderboards.plots.training import training
from robbench.leaderboards.table import Cell, Table

__all__ = ["draw"]

_KINDS = (
    *(counts, samples, training, learning_rates, ranking, classes, confusion),
    *(strength, sizes, rounding, examples, embeddings, noise),
)


def draw(directory: Path, board: Board, cells: Sequence[Cell], materials: Materials) -> tuple[Picture, ...]:
    """Draw every figure for which there is something to show, as ``figures/<name>.png`` and ``.svg``, and list them.

    The same input gives the same bytes on the same machine. Figures that an earlier call left are removed unless they
    are drawn again.

    Args:
        directory: The board's; made if need be.
        board: What the board says.
        cells: The records with their outcomes that it was made from.
        materials: What else there is to draw from.

    Returns:
        The figures, in the order in which they should be read.

    Raises:
        StoreError: If a file cannot be written, or one of the materials is damaged.
    """
    folder = directory / "figures"
    scene = Scene(board, Table.of(cells), materials, Fonts.installed())
    pictures = []
    with style(scene.fonts):
        for sketch in _sketches(scene):
            png, svg = encode(sketch.sheet)
            write_atomically(folder / f"{sketch.picture.name}.png", png)
            write_atomically(folder / f"{sketch.picture.name}.svg", svg)
            pictures.append(sketch.picture)
    write_manifest(directory, pictures)
    _remove_others(folder, {picture.name for picture in pictures})
    return tuple(pictures)


def _sketches(scene: Scene) -> Iterator[Sketch]:
    unreadable = scene.numbered_classes()
    for sketch in chain.from_iterable(kind(scene) for kind in _KINDS):
        if sketch.picture.section not in ("training", "robustness"):
            caption = sketch.picture.caption + unreadable
            sketch = sketch._replace(picture=replace(sketch.picture, caption=caption))
        yield sketch


def _remove_others(folder: Path, names: set[str]) -> None:
    for path in folder.glob("*"):
        if path.suffix in (".png", ".svg") and path.stem not in names:
            try:
                path.unlink()
            except OSError as error:
                raise StoreError(f"cannot remove {path}: {error.strerror}") from error
