"""What went into the models, and what a single change of it does."""

from __future__ import annotations

from collections.abc import Sequence

from robbench.leaderboards.board import Board
from robbench.leaderboards.pairs import Part
from robbench.leaderboards.text import NONE, TextTable, escape, points, probability, single, value_list
from robbench.records import Training
from robbench.statistics import wilson


def changes(board: Board, part: Part) -> TextTable:
    """Rows that differ in one part alone: by how many points the change moves them."""
    found = [pair for pair in board.pairs if pair.part == part]
    several = len(board.settings["seeds"]) > 1
    sizes = list(dict.fromkeys(size for pair in found for size in pair.elsewhere))
    worst = [f"Worst case {size}" for size in sizes]
    headers = ["From", "To", "Clean, balanced", *worst, "What ranks", "p (Holm)", *["What ranks, by seed"] * several]
    lines = [
        [
            escape(pair.first),
            escape(pair.second),
            points(pair.clean),
            *(points(change.added) if (change := pair.elsewhere.get(size)) else NONE for size in sizes),
            f"**{points(pair.robust.added)}**" if pair.robust else NONE,
            probability(pair.p),
            *[value_list(map(single, pair.robust.by_seed if pair.robust else ()))] * several,
        ]
        for pair in found
    ]
    return TextTable(headers, lines, left=(0, 1))


def training(board: Board) -> TextTable:
    """What training each row cost, and how it stands on validation data; means over seeds."""
    headers = ["Model", "Training images", "Epochs", "Steps", "Passes", "Validation", "Validation, balanced"]
    lines = []
    for row in board.rows:
        parts = list(row.training.values())
        if parts:
            passes = _mean([part.forwards + part.backwards for part in parts])
            lines.append(
                [
                    escape(row.label),
                    *(
                        f"{_mean([getattr(part, name) for part in parts]):,.0f}"
                        for name in ("images", "epochs", "steps")
                    ),
                    f"{passes:,.0f}",
                    _rate(parts),
                    f"{100 * _mean([part.validation_balanced_accuracy for part in parts]):.1f}",
                ]
            )
    return TextTable(headers, lines)


def _rate(parts: Sequence[Training]) -> str:
    n = parts[0].validation_images
    rate = wilson(_mean([part.validation_accuracy for part in parts]) * n, n)
    return f"{100 * rate.value:.1f} ({100 * (rate.low or 0):.1f}–{100 * (rate.high or 0):.1f})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
