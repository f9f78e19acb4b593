"""What went into the models, and what a single change of it does."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from robbench.evaluation.statistics import wilson
from robbench.leaderboards.ablations import Change, Part
from robbench.leaderboards.board import Board
from robbench.leaderboards.markdown import NONE, TextTable, escape, points, probability, signed, value_list
from robbench.results.schema import Training


def changes(board: Board, part: Part) -> TextTable:
    """Rows that differ in one part alone: by how many points the change moves them."""
    found = [pair for pair in board.pairs if pair.part == part]
    several = len(board.settings["seeds"]) > 1
    sizes = list(found[0].elsewhere) if found else []
    rows = {row.label: row for row in board.rows}
    headers = ["From", "To", "Clean, balanced", *["Clean, by seed"] * several]
    headers += [
        *(f"Worst case {size}" for size in sizes),
        "What ranks",
        *["What ranks, by seed"] * several,
        "Training passes",
    ]
    lines = [
        [
            escape(pair.first),
            escape(pair.second),
            _moved(pair.clean),
            *[_by_seed(pair.clean)] * several,
            *map(_moved, pair.elsewhere.values()),
            f"**{_moved(pair.robust)}**" if pair.robust else NONE,
            *[_by_seed(pair.robust)] * several,
            f"× {times:.1f}" if (times := board.times(rows[pair.first], rows[pair.second])) else NONE,
        ]
        for pair in found
    ]
    return TextTable(headers, lines, left=(0, 1)).without_empty()


def _moved(change: Change | None) -> str:
    return f"{points(change.added)}, p {probability(change.p)}" if change else NONE


def _by_seed(change: Change | None) -> str:
    return value_list(map(signed, change.by_seed if change else ()))


def training(board: Board) -> TextTable:
    """What training each row cost, and how it stands on validation data; means over seeds."""
    headers = ["Model", "Training images", "Epochs", "Steps", "Training passes", "Validation", "Validation, balanced"]
    lines = []
    for row in board.rows:
        parts = list(row.training.values())
        if parts:
            lines.append(
                [
                    escape(row.label),
                    *(f"{fmean(getattr(part, name) for part in parts):,.0f}" for name in ("images", "epochs", "steps")),
                    f"{fmean(part.forwards + part.backwards for part in parts):,.0f}",
                    _rate(parts),
                    f"{100 * fmean(part.validation_balanced_accuracy for part in parts):.1f}",
                ]
            )
    return TextTable(headers, lines)


def _rate(parts: Sequence[Training]) -> str:
    n = parts[0].validation_images
    rate = wilson(fmean(part.validation_accuracy for part in parts) * n, n)
    return f"{100 * rate.value:.1f} ({100 * (rate.low or 0):.1f}–{100 * (rate.high or 0):.1f})"
