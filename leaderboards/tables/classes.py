"""Accuracy class by class, and confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.sheet import Evidence, Heading, Sheet, SheetLine, TableCell, numbers, texts, words
from robbench.leaderboards.table import is_smallest_change
from robbench.leaderboards.tables.parts import samples, single, worst_case
from robbench.results.schema import MANY_CLASSES

HARDEST = 10
"""Of many classes, so many are shown."""


def per_class(board: Board) -> Iterator[Sheet]:
    """Accuracy by class: clean, perturbed, the worst case, then each attack in it, chains, and unions."""
    others = [spec.label for kind in ("chain", "union") for spec in board.conditions if spec.kind == kind]
    for label in (board.clean_label, board.perturbed):
        if label is not None:
            yield _condition_classes(board, label)
    threat = board.threat
    if threat:
        yield _classes(
            board, f"Worst case {threat}", lambda row: (row.worst[threat], None, worst_case(board, row, threat))
        )
    for label in (*(board.threats[threat] if threat else ()), *others):
        yield _condition_classes(board, label)


def _condition_classes(board: Board, label: str) -> Sheet:
    return _classes(
        board, label, lambda row: (row.cells[label].rates, row.cells[label].detail("macro_f1"), single(row, label))
    )


def _classes(
    board: Board, caption: str, found: Callable[[Row], tuple[Rates | None, Estimate | None, Evidence | None]]
) -> Sheet:
    train = board.dataset.counts.get("train", ())
    places = shown_classes(board)
    below = [f"{count:,} train" for count in train] if any(train) else [""] * len(board.dataset.class_names)
    names = [Heading(board.dataset.class_names[at], below=below[at] if at < len(below) else "") for at in places]
    made = [(row, *found(row)) for row in board.rows]
    everything = Heading("All", below=samples(rates for _, rates, _, _ in made))
    headings = (*words("Model"), everything, *numbers("Balanced", "Worst class", "Macro F1"), *names)
    lines = []
    for row, rates, score, evidence in made:
        if rates:
            figures = [rates.share, rates.balanced, rates.worst_class, score, *(rates.per_class[at] for at in places)]
            cells = (TableCell(row.label), *(TableCell.share(figure, evidence) for figure in figures))
            lines.append(SheetLine(cells, row.label))
    return Sheet(caption, headings, tuple(lines)).without_empty()


def shown_classes(board: Board) -> Sequence[int]:
    """The classes that tables show, in their order: of many the hardest of the first row, by what it is ranked by."""
    everything = range(len(board.dataset.class_names))
    ranking = next((found for row in board.rows if (found := board.ranking(row))), None)
    if len(everything) <= MANY_CLASSES:
        return everything
    known = [(figure.value, at) for at, figure in enumerate(ranking.per_class) if figure] if ranking else []
    return sorted(at for _, at in sorted(known)[:HARDEST])


def class_figures(board: Board) -> Sheet:
    """One line per row, condition or worst case, and class; without attacks that look for the smallest change."""
    train = board.dataset.counts.get("train", ())
    shown = [condition.label for condition in board.conditions if not is_smallest_change(condition)]
    lines = []
    for row in board.rows:
        found = {label: row.cells[label].rates for label in shown}
        found |= {f"worst case {threat}": rates for threat, rates in row.worst.items()}
        for label, rates in found.items():
            for at, figure in enumerate(rates.per_class if rates else ()):
                if figure is not None:
                    images = str(train[at]) if at < len(train) else ""
                    named = texts(row.label, label, board.dataset.class_names[at], images)
                    lines.append(SheetLine((*named, TableCell.share(figure)), row.label))
    return Sheet("Per class", (*words("model", "condition", "class", "train images"), Heading("value")), tuple(lines))


def report(board: Board, row: Row) -> Sheet | None:
    """Precision, recall and F1 of each class on clean images, all seeds together, with their averages."""
    label = board.clean_label
    counts = np.array(row.cells[label].confusion if label else ())
    if not counts.size:
        return None
    support, predicted, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    # A class that is never predicted has no precision; scikit-learn's report sets it to 0, and so do we.
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + predicted, 1)
    figures = np.stack([precision, recall, f1], axis=1)
    seen = support > 0
    named = [*zip(board.dataset.class_names, figures, support, strict=True)]
    named.append(("macro average", figures[seen].mean(axis=0), support.sum()))
    named.append(("weighted average", (support[:, None] * figures).sum(axis=0) / support.sum(), support.sum()))
    evidence = single(row, label)
    lines = tuple(
        SheetLine(
            (
                TableCell(name),
                *(TableCell.percentage(float(value), evidence) for value in line),
                TableCell.count(int(count), evidence),
            )
        )
        for name, line, count in named
    )
    return Sheet("Report, clean images", (*words("Class"), *numbers("Precision", "Recall", "F1", "Support")), lines)


def matrices(board: Board, row: Row) -> Iterator[Sheet]:
    """The row's confusion matrices, clean and under the ranking attack that leaves it least."""
    names = board.dataset.class_names
    for label in dict.fromkeys((board.clean_label, row.hardest)):
        if label is not None and row.cells[label].confusion:
            evidence = single(row, label)
            lines = tuple(
                SheetLine((TableCell(name), *(TableCell(str(count), count, evidence=evidence) for count in line)))
                for name, line in zip(names, row.cells[label].confusion, strict=True)
            )
            yield Sheet(label, (*words("true ↓ predicted →"), *numbers(*names)), lines)


def confusions(board: Board, row: Row) -> Iterator[Sheet]:
    """Of many classes those that the row confuses most often, clean and under that attack."""
    names = board.dataset.class_names
    for label in dict.fromkeys((board.clean_label, row.hardest)):
        if label is not None and (found := row.cells[label].confused):
            evidence = single(row, label)
            lines = tuple(
                SheetLine(
                    (
                        *(TableCell(names[at]) for at in (true, predicted)),
                        TableCell.count(count, evidence),
                        TableCell.percentage(count / support, evidence),
                    )
                )
                for true, predicted, count, support in found
            )
            headings = (*words("True class", "Predicted as"), *numbers("Images", "Share of the class"))
            yield Sheet(label, headings, lines)


def predictions(board: Board, row: Row) -> list[Sheet]:
    """The row's report and its confusion matrices; of many classes what it confuses most often."""
    found = report(board, row)
    return [*([found] if found else []), *matrices(board, row), *confusions(board, row)]
