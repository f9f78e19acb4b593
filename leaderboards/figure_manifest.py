"""The figures of a board: what each is called, what it shows, and where its files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.core.safe_text import visible_values
from robbench.core.untrusted_files import read_json
from robbench.results.schema import dumps

Section = Literal["ranking", "strength", "rounding", "classes", "images", "noise", "embeddings", "data", "training"]
"""Parts of a board that figures illustrate, in the order in which figures are listed."""

FILE_STEM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Names of figures, which are safe as those of files."""
_LARGEST = 2**22  # bytes


@dataclass(frozen=True)
class Picture:
    """A figure of a board, drawn as ``figures/<name>.png`` in the board's directory.

    Attributes:
        name: Stem of its files.
        section: The part of the board that it illustrates.
        title: A short heading.
        caption: What it shows, as plain text.
        alt: What somebody who cannot see it is told instead, as plain text.
        main: Whether the markdown board shows it; the page shows all.
        photograph: Whether it shows images, whose colors mean something; others are charts on white, which a dark page
            may invert. Of charts there may be an SVG beside.
    """

    name: str
    section: Section
    title: str
    caption: str
    alt: str
    main: bool = False
    photograph: bool = False


def write_manifest(directory: Path, pictures: Sequence[Picture]) -> Path:
    """List a board's figures in ``figures/figures.json``.

    Raises:
        StoreError: If it cannot be written.
    """
    path = directory / "figures" / "figures.json"
    write_atomically(path, dumps([asdict(picture) for picture in pictures]))
    return path


def read_manifest(directory: Path) -> tuple[Picture, ...]:
    """The figures of a board, in order; none where none were drawn. Their texts are made visible.

    Raises:
        StoreError: If the list cannot be read or a file that it names is missing.
    """
    path = directory / "figures" / "figures.json"
    try:
        listed = visible_values(read_json(path, _LARGEST, linked=True))
        pictures = tuple(Picture(**_migrated(entry)) for entry in listed)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    for picture in pictures:
        if not (directory / "figures" / f"{picture.name}.png").is_file():
            raise StoreError(f"{path} names {picture.name}.png, which is not there")
    return pictures


_EARLIER: Mapping[str, Section] = {
    "robustness": "strength",
    "accuracy": "classes",
    "examples": "images",
    "attacked-over-eps": "strength",
    "rounding": "rounding",
    "ranking": "ranking",
}


def _migrated(entry: dict[str, Any]) -> dict[str, Any]:
    """Earlier lists had fewer sections, and did not say which figures are photographs."""
    if "photograph" in entry or not {"name", "section"} <= entry.keys():
        return entry
    section = _EARLIER.get(entry["name"], _EARLIER.get(entry["section"], entry["section"]))
    photograph = entry["section"] == "examples" or entry["name"] == "sample-images"
    return entry | {"section": section, "photograph": photograph}
