"""Figures of boards: a registered component each, found when a board is drawn."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError, StoreError, explain
from robbench.core.registry import Registry
from robbench.core.safe_text import visible
from robbench.leaderboards.artifact_reader import Materials
from robbench.leaderboards.board import Board
from robbench.leaderboards.figure_manifest import FILE_STEM, Picture, Section, write_manifest
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import Fonts, png, style, svg
from robbench.leaderboards.table import Table
from robbench.leaderboards.visible_cells import visible_cells
from robbench.results.schema import CellResult

__all__ = ["draw", "figures", "in_order"]

_SECTIONS: tuple[Section, ...] = get_args(Section)


def figures(registry: Registry) -> dict[str, Figure]:
    """The registered figures by name, in the order in which they are read: by section and position."""
    found = {
        name: cast(Figure, entry.cls.make(entry.mark.preset, f'figure "{name}"'))
        for name, entry in registry.entries("figure").items()
    }
    return dict(sorted(found.items(), key=lambda item: (_SECTIONS.index(item[1].section), item[1].position, item[0])))


def draw(
    directory: Path, board: Board, cells: Sequence[CellResult], materials: Materials, registry: Registry | None = None
) -> tuple[Picture, ...]:
    """Draw every figure for which there is something to show, as ``figures/<name>.png``, and list them.

    Line drawings are written as ``.svg`` as well. The same input gives the same bytes on the same machine. Figures that
    an earlier call left are removed unless they are drawn again.

    Args:
        directory: The board's; made if need be.
        board: What the board says.
        cells: The records with their outcomes that it was made from.
        materials: What else there is to draw from.
        registry: The known figures; the built-in ones where it is None.

    Returns:
        The figures, in the order in which they should be read.

    Raises:
        RequestError: If two drawings share a name, or one has a name that cannot be that of a file.
        StoreError: If a file cannot be written, or one of the materials is damaged.
    """
    folder = directory / "figures"
    scene = Scene(board, Table.of(visible_cells(cells)), materials, Fonts.installed())
    pictures: dict[str, Picture] = {}
    with style(scene.fonts):
        for name, figure in figures(registry or Registry(installed=False)).items():
            for sketch in _drawn(name, figure, scene):
                if sketch.name in pictures or not re.fullmatch(FILE_STEM, sketch.name):
                    raise RequestError(
                        f'figure "{name}" gives a drawing "{sketch.name}", a name that is taken or no file name'
                    )
                write_atomically(folder / f"{sketch.name}.png", png(sketch.sheet, figure.photograph))
                if not figure.photograph:
                    write_atomically(folder / f"{sketch.name}.svg", svg(sketch.sheet))
                pictures[sketch.name] = _picture(scene, figure, sketch)
    write_manifest(directory, list(pictures.values()))
    _remove_others(folder, pictures)
    return tuple(pictures.values())


def _drawn(name: str, figure: Figure, scene: Scene) -> list[Sketch]:
    """The drawings of a figure; none, with a warning, where it fails: the board is worth more than that."""
    try:
        return list(figure.draw(scene))
    except (StoreError, RequestError):
        raise
    except Exception as error:
        warnings.warn(f'figure "{name}" is left out: {explain(error)}', stacklevel=2)
        return []


def _picture(scene: Scene, figure: Figure, sketch: Sketch) -> Picture:
    numbered = "" if figure.section in ("ranking", "training", "rounding") else scene.numbered_classes()
    name, title, caption, alt, _, main = sketch
    title, caption, alt = map(visible, (title, caption + numbered, alt))
    return Picture(name, figure.section, title, caption, alt, main, figure.photograph)


def in_order(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures by section, otherwise in the order given."""
    return sorted(pictures, key=lambda picture: _SECTIONS.index(picture.section))


def _remove_others(folder: Path, pictures: dict[str, Picture]) -> None:
    for path in folder.glob("*"):
        picture = pictures.get(path.stem)
        drawn = picture is not None and not (picture.photograph and path.suffix == ".svg")
        if path.suffix in (".png", ".svg") and not drawn:
            try:
                path.unlink()
            except OSError as error:
                raise StoreError(f"cannot remove {path}: {error.strerror}") from error
