"""A page that leads to the boards of a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from robbench.core.errors import StoreError
from robbench.core.safe_text import visible_values
from robbench.core.untrusted_files import read_json
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import heading
from robbench.leaderboards.html.rendering import render
from robbench.leaderboards.sheet import Sheet, TableCell

_LARGEST = 2**28  # bytes


def _estimate(found: Any) -> Estimate:
    """A figure of ``leaderboard.json``: a list, or the object that it was in an earlier version."""
    if isinstance(found, Mapping):
        found = [found["value"], found.get("low"), found.get("high"), found["n"], found.get("seeds", ())]
    value, low, high, n, *seeds = found
    return Estimate(float(value), low, high, int(n), tuple(seeds[0]) if seeds else (value,))


def folder_link(folder: str, file: str) -> str:
    """The address of a file of a board's directory, as seen from the directory above."""
    return f"{quote(os.fsencode(folder))}/{file}"


@dataclass(frozen=True)
class IndexEntry:
    """A board of a directory.

    Attributes:
        folder: Its directory's name.
        title: Its heading.
        dataset: Label of its data set.
        rows: How many rows it has.
        leader: Label of the row that leads; empty where none is ranked without an audit flag.
        tied: How many others share the leader's rank.
        measure: What the rows are ranked by.
        figure: What the leader has of it.
    """

    folder: str
    title: str
    dataset: str
    rows: int
    leader: str
    tied: int
    measure: str
    figure: Estimate | None

    @classmethod
    def of(cls, folder: str, data: Mapping[str, Any]) -> Self:
        """The entry of a board.

        Args:
            folder: Its directory's name.
            data: The content of its ``leaderboard.json``.
        """
        ranked = [row for row in data["rows"] if row["rank"] and not row.get("flags")]
        by = data["ranked_by"]
        figure = None
        if ranked:
            clean = next((spec["label"] for spec in data["conditions"] if spec["kind"] == "clean"), None)
            rates = ranked[0]["worst"][by] if by else ranked[0]["cells"][clean]["rates"]
            figure = _estimate(rates["balanced"])
        return cls(
            folder=folder,
            title=heading(data["title"], data["dataset"]["label"]),
            dataset=data["dataset"]["label"],
            rows=len(data["rows"]),
            leader=ranked[0]["model"]["label"] if ranked else "",
            tied=sum(row["rank"] == ranked[0]["rank"] for row in ranked) - 1 if ranked else 0,
            measure=f"worst case {by}" if by else "clean, balanced",
            figure=figure,
        )

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The entry of a board that lies in a directory.

        Raises:
            StoreError: If it cannot be read.
        """
        path = directory / "leaderboard.json"
        try:
            return cls.of(directory.name, visible_values(read_json(path, _LARGEST, linked=True)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise StoreError(f"cannot read {path}: {type(error).__name__}: {error}") from error

    def link(self, file: str = "index.html") -> str:
        """The address of one of its files, as seen from the directory."""
        return folder_link(self.folder, file)

    @property
    def cell(self) -> TableCell:
        """The leader's figure."""
        return TableCell.share(self.figure, None, bar=True, ends=True)


@dataclass(frozen=True)
class ProvedTable:
    """Attacks beside proved bounds over the boards of a grid.

    Attributes:
        answer: What the table answers, paragraphs of markdown.
        table: A line for each network and its images.
        legend: What its figures are, in markdown.
    """

    answer: tuple[str, ...]
    table: Sheet
    legend: str


def index_page(entries: Sequence[IndexEntry], proved: Sequence[ProvedTable] = ()) -> str:
    """A page that leads to some boards, as a single HTML file that is to lie beside their directories.

    Args:
        entries: The boards.
        proved: Attacks beside proved bounds, over several boards each.
    """
    return render("index.html.jinja", entries=entries, proved=proved)
