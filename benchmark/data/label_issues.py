"""A listing of the images of a data set whose label looks wrong, and a sheet of the worst of them to look at."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.core.atomic_io import write_atomically
from robbench.data.balancing.suspects import Suspects, suspects

if TYPE_CHECKING:
    from robbench.planning.plan import Data

PARTS = ("train", "validation", "test")
_SHEETS = ("suspects.png", "suspects.svg")
SHOWN = 24
_COLUMNS = 6
_IMAGE, _CAPTION, _GAP = 1.05, 0.45, 0.05  # inches


@dataclass(frozen=True)
class Listing:
    """What was found in a data set.

    Attributes:
        data: The data set.
        found: The suspects among all its images, whatever split they are in.
        parts: The split of each suspect.
    """

    data: Data
    found: Suspects
    parts: tuple[str, ...]

    def counts(self) -> list[tuple[str, int, int, str]]:
        """Per class its name, its images, the suspects among them, and the class most often suggested for those."""
        names, labels = self.data.splits.class_names, self.data.splits.labels
        lines = []
        for label, name in enumerate(names):
            suggested = np.bincount(self.found.suggested[self.found.given == label], minlength=len(names))
            usual = names[int(suggested.argmax())] if suggested.any() else ""
            lines.append((name, int((labels[_used(self.data)] == label).sum()), int(suggested.sum()), usual))
        return lines


def _used(data: Data) -> NDArray[np.int64]:
    return np.concatenate([getattr(data.splits, part) for part in PARTS])


def examine(data: Data, seed: int = 0) -> Listing:
    """Look for wrong labels among all images that a data set trains, validates and tests on.

    Args:
        data: The data set.
        seed: Seed of the cross-validation.

    Raises:
        RequestError: If a class has fewer than two images.
    """
    splits = data.splits
    found = suspects(splits.take(data.source, _used(data)), data.num_classes, seed)
    part_of = {int(id_): part for part in PARTS for id_ in getattr(splits, part)}
    return Listing(data, found, tuple(part_of[int(id_)] for id_ in found.ids))


def write(listing: Listing, folder: Path) -> list[Path]:
    """Write ``suspects.csv`` and, where there are any, the sheet ``suspects.png`` and ``suspects.svg``.

    An id is the position of the image in the order in which the data set reads its files.

    Raises:
        StoreError: If a file cannot be written.
    """
    names, found = listing.data.splits.class_names, listing.found
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "id", "given", "suggested", "score"])
    for part, id_, given, suggested, score in zip(
        listing.parts, found.ids, found.given, found.suggested, found.scores, strict=True
    ):
        writer.writerow([part, id_, names[given], names[suggested], score])
    write_atomically(folder / "suspects.csv", text.getvalue())
    if not len(found):
        for name in _SHEETS:
            (folder / name).unlink(missing_ok=True)
        return [folder / "suspects.csv"]
    for name, content in zip(_SHEETS, contact_sheet(listing), strict=True):
        write_atomically(folder / name, content)
    return [folder / name for name in ("suspects.csv", *_SHEETS)]


def contact_sheet(listing: Listing) -> tuple[bytes, bytes]:
    """The worst suspects with what they are called and what the model calls them, as PNG and as SVG."""
    from robbench.leaderboards.plots.style import WIDTH, Fonts, encode, page, place, style

    names, found = listing.data.splits.class_names, listing.found
    shown = min(SHOWN, len(found))
    across, down = WIDTH / _COLUMNS, _IMAGE + _CAPTION
    fonts = Fonts.installed()
    with style(fonts):
        made, axes = page(-(-shown // _COLUMNS) * down)
        for rank in range(shown):
            x, y = rank % _COLUMNS * across, rank // _COLUMNS * down
            image = listing.data.source.images[found.ids[rank]] / 255
            place(axes, image, x + (across - _IMAGE) / 2, y + _GAP, _IMAGE)
            given, suggested = (fonts.text(names[label], 16) for label in (found.given[rank], found.suggested[rank]))
            axes.text(x + across / 2, y + _IMAGE + 2 * _GAP, f"{given}\n→ {suggested}", size=8, ha="center", va="top")
        return encode(made)
