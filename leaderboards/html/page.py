"""The page of a board: one file that needs no other, nor a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robbench.leaderboards.board import Board
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.findings import about_ranking, comparison_note, findings
from robbench.leaderboards.html.figures import placed
from robbench.leaderboards.html.model_cards import model_cards
from robbench.leaderboards.html.records import embedded, facets
from robbench.leaderboards.html.rendering import render
from robbench.leaderboards.sheet import Records
from robbench.leaderboards.tables.bounds import sentences
from robbench.leaderboards.tables.classes import HARDEST, predictions
from robbench.leaderboards.tables.contents import sheets
from robbench.leaderboards.tables.method import usual_recipe
from robbench.results.schema import AUDIT_STEPS, MANY_CLASSES, BoardNote, CellResult, Record

KINDS = {
    "clean": "clean",
    "natural": "natural perturbations",
    "attack": "attacks",
    "chain": "chains of both",
    "union": "worst cases over several threat models",
    "certificate": "certificates",
}

FILES = {
    "leaderboard.csv": "ranking and conditions",
    "per_class.csv": "class by class",
    "changes.csv": "single changes",
    "training.csv": "training cost",
    "checks.csv": "checks",
    "bounds.csv": "proved bounds",
    "certified.csv": "certified beside robust accuracy",
    "minimal_norms.csv": "minimal-norm attacks",
    "corruptions.csv": "corruptions",
    "leaderboard.json": "the whole board",
    "README.md": "in markdown",
}
_REPORTED = 12
"""Rows from the top whose reports and matrices are shown whole; those of all stand with their records."""

ARCHIVE = {"records.jsonl": "all records", "outcomes.npz": "predictions, image by image"}
"""Named and not linked: a board's page is the same before it is published, when they are not there."""


def page(
    board: Board,
    note: BoardNote,
    cells: Sequence[CellResult],
    directory: Path,
    pictures: Sequence[Picture],
    reload: float | None = None,
) -> str:
    """A board as a single HTML file, with its records and figures inside.

    Args:
        board: The board.
        note: What it says that does not follow from its cells.
        cells: Records with their outcomes, those that the board was made of.
        directory: Where the board's files lie.
        pictures: Figures to embed, by their files under ``figures``.
        reload: Seconds after which it loads itself again, while a run goes on.

    Raises:
        StoreError: If a figure cannot be read.
    """
    records = _by_place(cells)
    parts = sheets(board, note)
    predicted = {row.label: found for row in board.rows[:_REPORTED] if (found := predictions(board, row))}
    tables = [sheet for made in (*parts.values(), *predicted.values()) for sheet in made]
    sources = {source.anchor: source for sheet in tables for source in sheet.sources()}
    return render(
        "page.html.jinja",
        board=board,
        reload=reload,
        title=board.heading,
        note=note,
        findings=findings(board),
        proved=sentences(board, note.bounds),
        about_ranking=about_ranking(board),
        tests=comparison_note(board),
        kinds={word: n for kind, word in KINDS.items() if (n := sum(spec.kind == kind for spec in board.conditions))},
        parts=parts,
        hardest=HARDEST if len(board.dataset.class_names) > MANY_CLASSES else 0,
        predictions=predicted,
        places={row.label: at for at, row in enumerate(board.rows)},
        facets={name: values for name, values in _facets(board).items() if len(values) > 1},
        figures=placed(directory / "figures", pictures, [part for part in ("strength", "rounding") if parts[part]]),
        cards={card.row: card for card in model_cards(board, (record for record, _ in cells))},
        downloads={name: text for name, text in FILES.items() if parts.get(name.removesuffix(".csv"), True)},
        archive=ARCHIVE,
        usual=usual_recipe(board),
        audit_steps=AUDIT_STEPS,
        data=embedded(board, records, sources.values()),
    )


def _by_place(cells: Sequence[CellResult]) -> Records:
    found: dict[tuple[str, str], list[Record]] = {}
    for record, _ in sorted(cells, key=lambda cell: cell[0].spec.seed):
        found.setdefault((record.spec.model.label, record.spec.condition.label), []).append(record)
    return found


def _facets(board: Board) -> dict[str, list[str]]:
    """What rows can be filtered by, with all values that occur."""
    found: dict[str, dict[str, None]] = {}
    for row in board.rows:
        for name, value in facets(row.model).items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}
