"""The figures of a page: each embedded under the part that it illustrates."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from robbench.core.errors import StoreError
from robbench.leaderboards.figure_manifest import Picture, Section

_OPTIONAL = ("strength", "rounding")


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure of a page.

    Attributes:
        picture: What the manifest says of it.
        address: Its image as a data address.
    """

    picture: Picture
    address: str


def placed(folder: Path, pictures: Sequence[Picture], parts: Collection[str]) -> dict[str, list[EmbeddedFigure]]:
    """The figures of a board by the part of the page that they illustrate.

    Args:
        folder: Where their files lie.
        pictures: The figures.
        parts: Those of ``strength`` and ``rounding`` that the page has; figures of others stand with the conditions.

    Raises:
        StoreError: If a figure cannot be read.
    """
    found: dict[str, list[EmbeddedFigure]] = {part: [] for part in (*get_args(Section), "conditions")}
    for picture in pictures:
        part = "conditions" if picture.section in _OPTIONAL and picture.section not in parts else picture.section
        found[part].append(EmbeddedFigure(picture, _address(folder, picture)))
    return found


def _address(folder: Path, picture: Picture) -> str:
    try:
        image = (folder / f"{picture.name}.png").read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read figure {picture.name} in {folder}: {error}") from error
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
