"""Figures class by class, and confusion matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from robbench.leaderboards.aggregates import Figure, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import TextTable, escape, percent


def per_class(board: Board) -> Iterator[tuple[str, TextTable]]:
    """Right per class: clean, perturbed, the worst case, then each attack that it is made of, and chains."""
    for condition in board.conditions:
        if condition.kind == "clean":
            yield "Clean", _condition_classes(board, condition.label)
    if board.perturbed:
        yield f"Perturbed: {board.perturbed}", _condition_classes(board, board.perturbed)
    if board.ranked_by:
        worst = [row.worst[board.ranked_by] for row in board.rows]
        yield f"Worst case {board.ranked_by}", _class_table(board, worst, [None] * len(board.rows))
    attacked = board.threats[board.ranked_by] if board.ranked_by else ()
    chains = [condition.label for condition in board.conditions if condition.kind == "chain"]
    for label in (*(attacked if len(attacked) > 1 else ()), *chains):
        yield label, _condition_classes(board, label)


def _condition_classes(board: Board, label: str) -> TextTable:
    entries = [row.cells[label] for row in board.rows]
    f1 = [(entry.details or {}).get("macro_f1") for entry in entries]
    return _class_table(board, [entry.rates for entry in entries], f1)


def _class_table(board: Board, column: Sequence[Rates | None], f1: Sequence[Figure | None]) -> TextTable:
    train = board.dataset.counts.get("train", ())
    names = [
        f"{escape(name)} ({train[label]} train)" if label < len(train) else escape(name)
        for label, name in enumerate(board.dataset.class_names)
    ]
    lines = []
    for row, rates, score in zip(board.rows, column, f1, strict=True):
        if rates:
            figures = [rates.share, rates.balanced, rates.worst_class, score, *rates.per_class]
            lines.append([escape(row.label), *(percent(figure) for figure in figures)])
    return TextTable(["Model", "All", "Balanced", "Worst class", "Macro F1", *names], lines).without_empty()


def report(board: Board, row: Row) -> TextTable | None:
    """Precision, recall and F1 of each class on unchanged images, all seeds together, with their averages."""
    label = next((condition.label for condition in board.conditions if condition.kind == "clean"), None)
    counts = np.array(row.cells[label].confusion if label else ())
    if not counts.size:
        return None
    support, decided, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    # A class that is never decided has no precision; scikit-learn's report sets it to 0, and so do we.
    precision, recall = right / np.maximum(decided, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + decided, 1)
    figures = np.stack([precision, recall, f1], axis=1)
    seen = support > 0
    lines = [
        [escape(name), *(f"{100 * value:.1f}" for value in line), f"{count:,}"]
        for name, line, count in zip(board.dataset.class_names, figures, support, strict=True)
    ]
    averages = {
        "macro average": figures[seen].mean(axis=0),
        "weighted average": (support[:, None] * figures).sum(axis=0) / support.sum(),
    }
    for name, average in averages.items():
        lines.append([f"*{name}*", *(f"{100 * value:.1f}" for value in average), f"{support.sum():,}"])
    return TextTable(["Class", "Precision", "Recall", "F1", "Support"], lines)


def matrices(board: Board, row: Row) -> Iterator[tuple[str, TextTable]]:
    """The row's confusion matrices, clean and under the attack of the ranking threat model that leaves it least."""
    clean = next((condition.label for condition in board.conditions if condition.kind == "clean"), None)
    names = [escape(name) for name in board.dataset.class_names]
    for label in dict.fromkeys((clean, row.hardest)):
        if label is not None and row.cells[label].confusion:
            counts = row.cells[label].confusion
            lines = [[name, *map(str, line)] for name, line in zip(names, counts, strict=True)]
            yield label, TextTable(["true ↓ decided →", *names], lines)
