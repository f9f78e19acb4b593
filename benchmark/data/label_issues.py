"""The images of a data set whose label looks wrong, as a listing."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.core.atomic_io import write_atomically
from robbench.core.safe_text import csv_value
from robbench.data.balancing.suspects import Suspects, suspects
from robbench.data.dataset import DecodedImages
from robbench.data.splits import Splits

PARTS = ("train", "validation", "test")
_SHEETS = ("suspects.png", "suspects.svg")


@dataclass(frozen=True)
class Listing:
    """What was found in a data set.

    Attributes:
        decoded: The images of the data set.
        splits: Which of them are used for what.
        found: The suspects among all its images, whatever split they are in.
        parts: The split of each suspect.
    """

    decoded: DecodedImages
    splits: Splits
    found: Suspects
    parts: tuple[str, ...]

    def counts(self) -> list[tuple[str, int, int, str]]:
        """Per class its name, its images, the suspects among them, and the class most often suggested for those."""
        names, labels = self.splits.class_names, self.splits.labels
        lines = []
        for label, name in enumerate(names):
            suggested = np.bincount(self.found.suggested[self.found.given == label], minlength=len(names))
            usual = names[int(suggested.argmax())] if suggested.any() else ""
            lines.append((name, int((labels[_used(self.splits)] == label).sum()), int(suggested.sum()), usual))
        return lines

    def worst(self, count: int) -> list[tuple[NDArray[Any], str, str]]:
        """The most doubtful images, shape ``(C, H, W)``, each with its label and the class suggested for it."""
        names, found = self.splits.class_names, self.found
        ranked = zip(found.ids[:count], found.given[:count], found.suggested[:count], strict=True)
        return [(self.decoded.images[id_], names[given], names[suggested]) for id_, given, suggested in ranked]


def _used(splits: Splits) -> NDArray[np.int64]:
    return np.concatenate([getattr(splits, part) for part in PARTS])


def examine(decoded: DecodedImages, splits: Splits, seed: int = 0) -> Listing:
    """Look for wrong labels among all images that a data set trains, validates and tests on.

    Args:
        decoded: The images of the data set.
        splits: Which of them are used for what.
        seed: Seed of the cross-validation.

    Raises:
        RequestError: If a class has fewer than two images.
    """
    found = suspects(splits.take(decoded, _used(splits)), len(splits.class_names), seed)
    part_of = {int(id_): part for part in PARTS for id_ in getattr(splits, part)}
    return Listing(decoded, splits, found, tuple(part_of[int(id_)] for id_ in found.ids))


def write(listing: Listing, folder: Path, sheet: tuple[bytes, bytes] | None) -> list[Path]:
    """Write ``suspects.csv`` and, where there is one, the sheet as ``suspects.png`` and ``suspects.svg``.

    An id is the position of the image in the order in which the data set reads its files; where each image has a file
    of its own, that is named, too. Names that begin like a formula have an apostrophe in front; see
    ``robbench.core.safe_text.csv_value``.

    Args:
        listing: What was found.
        folder: Where to.
        sheet: A picture of the worst suspects, as PNG and as SVG; an earlier one is removed where there is none.

    Raises:
        StoreError: If a file cannot be written.
    """
    names, found = listing.splits.class_names, listing.found
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    files = listing.decoded.files
    writer.writerow(["split", "id", "given", "suggested", "score", *(["file"] if len(files) else [])])
    for part, id_, given, suggested, score in zip(
        listing.parts, found.ids, found.given, found.suggested, found.scores, strict=True
    ):
        named = [csv_value(str(files[id_]))] if len(files) else []
        writer.writerow([part, id_, csv_value(names[given]), csv_value(names[suggested]), score, *named])
    write_atomically(folder / "suspects.csv", text.getvalue())
    if sheet is None:
        for name in _SHEETS:
            (folder / name).unlink(missing_ok=True)
        return [folder / "suspects.csv"]
    for name, content in zip(_SHEETS, sheet, strict=True):
        write_atomically(folder / name, content)
    return [folder / name for name in ("suspects.csv", *_SHEETS)]
