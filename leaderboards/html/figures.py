"""The figures of a page: each under the part that it illustrates, embedded, and whether its colors may be inverted."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from robbench.core.errors import StoreError
from robbench.leaderboards.figure_manifest import Picture

# By the longest beginning of a figure's name, then by its section in the manifest.
_NAMES = {
    "ranking": "ranking",
    "classes": "classes",
    "confusion": "classes",
    "class-counts": "data",
    "rounding": "rounding",
    "attacked-over-eps": "strength",
    "noise-images": "images",
}
_SECTIONS = {
    "data": "data",
    "training": "training",
    "accuracy": "classes",
    "robustness": "strength",
    "examples": "images",
    "noise": "noise",
    "embeddings": "embeddings",
}
_OPTIONAL = ("strength", "rounding")
_IMAGES = ("sample-images", "attacked", "noise-images")
_LONG_NUMBER = re.compile(r'(?<=[\s"])-?\d+\.\d{3,}(?=[\s"])')
_PROLOGUE = re.compile(r"<\?xml.*?\?>|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure of a page.

    Attributes:
        picture: What the manifest says of it.
        address: Its content as a data address.
        photographs: Whether it shows images, whose colors are data and are never inverted.
    """

    picture: Picture
    address: str
    photographs: bool


def placed(folder: Path, pictures: Sequence[Picture], parts: Collection[str]) -> dict[str, list[EmbeddedFigure]]:
    """The figures of a board by the part of the page that they illustrate.

    Args:
        folder: Where their files lie.
        pictures: The figures.
        parts: Those of ``strength`` and ``rounding`` that the page has; figures of others stand with the conditions.

    Raises:
        StoreError: If a figure cannot be read.
    """
    found: dict[str, list[EmbeddedFigure]] = {
        part: [] for part in (*_NAMES.values(), *_SECTIONS.values(), "conditions")
    }
    for picture in pictures:
        named = max((name for name in _NAMES if picture.name.startswith(name)), key=len, default=None)
        part = _NAMES[named] if named else _SECTIONS[picture.section]
        if part in _OPTIONAL and part not in parts:
            part = "conditions"
        figure = EmbeddedFigure(picture, _address(folder, picture), picture.name.startswith(_IMAGES))
        found[part].append(figure)
    return found


def _address(folder: Path, picture: Picture) -> str:
    """The smaller of a figure's two files as a data address; a drawing that holds a photograph is none."""
    try:
        drawing = (folder / f"{picture.name}.svg").read_text(encoding="utf-8")
        raster = (folder / f"{picture.name}.png").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read figure {picture.name} in {folder}: {error}") from error
    encoded = f"data:image/png;base64,{base64.b64encode(raster).decode()}"
    if "<image" in drawing:
        return encoded
    # Lengths in points: a hundredth is less than any screen shows.
    lean = _LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", _PROLOGUE.sub("", drawing))
    drawn = "data:image/svg+xml," + quote(" ".join(lean.split()), safe=" =/:;,.()+-*!?@$~[]{}|")
    return min(drawn, encoded, key=len)
