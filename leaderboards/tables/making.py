"""Effects of single changes, and what models cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from robbench.evaluation.statistics import wilson
from robbench.leaderboards.ablations import PARTS, Change, Pair, Part
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import NONE, counted, probability, reach, signed, value_list
from robbench.leaderboards.sheet import (
    Detail,
    Evidence,
    Heading,
    Sheet,
    SheetLine,
    TableCell,
    by_row,
    numbers,
    texts,
    words,
)
from robbench.leaderboards.tables.parts import MODEL, Column, any_of, model_size
from robbench.results.schema import Measure

WORDS: dict[Part, str] = {"objective": "Objective", "defenses": "Defense", "balancer": "Balancing"}
_NOTHING: dict[Part, str] = {"objective": "none", "defenses": "no defense", "balancer": "no balancing"}


def named(part: Part, value: str) -> str:
    """How a part's value is called: ``no defense`` rather than ``none``."""
    return _NOTHING[part] if value == "none" else value


def tested(change: Change) -> str:
    """The interval of a change in points, and p where there is one."""
    p = "" if change.p is None else f", p {probability(change.p)}"
    return f"{reach(change.added.low, change.added.high)}{p}"


def changes(board: Board, part: Part) -> Sheet:
    """Rows that differ in one part alone: by how many points the change moves them."""
    found = [pair for pair in board.pairs if pair.part == part]
    rows = {row.label: row for row in board.rows}
    headings = [*words("From", "To")]
    for name in found[0].changes(board.threat) if found else ():
        headings += [Heading(name), Heading(f"{name}: p", detail=Detail.DATA)]
    headings.append(Heading("× training passes", rising=True))
    lines = []
    for pair in found:
        evidence = _evidence(board, pair)
        cells = [*texts(pair.first, pair.second)]
        for change in pair.changes(board.threat).values():
            cells += _moved(change, evidence)
        cells.append(TableCell.quantity(board.times(rows[pair.first], rows[pair.second]), evidence, "× {}"))
        lines.append(SheetLine(tuple(cells)))
    return Sheet(WORDS[part], tuple(headings), tuple(lines))


def _moved(change: Change | None, evidence: Evidence) -> list[TableCell]:
    """What a change adds in points, and its p value where it has one."""
    if change is None:
        return [TableCell(NONE)] * 2
    added = change.added
    figure, seeds = Estimate.of(added, change.by_seed), f"by seed {value_list(map(signed, change.by_seed))}"
    return [
        TableCell(signed(added.value), added.value, figure, evidence, seeds, tested(change)),
        TableCell(probability(change.p), change.p, evidence=evidence),
    ]


def _evidence(board: Board, pair: Pair) -> Evidence:
    """What a comparison of two rows rests on: the records of both, clean and in the worst cases compared."""
    sizes = [*pair.elsewhere, *([board.threat] if board.threat else [])]
    labels = dict.fromkeys(label for size in sizes for label in board.threats[size])
    places = [(row, label) for label in (board.clean_label, *labels) if label for row in (pair.first, pair.second)]
    return Evidence.of(f"{pair.first} → {pair.second}", places)


def effects(board: Board) -> Sheet:
    """Each single change over all pairs of unflagged rows that differ in it alone: mean effect in points, range.

    Means say on how many images they are, so that those on others stand in a table of their own.
    """
    sound = {row.label for row in board.sound}
    groups: dict[tuple[Part, str], list[Pair]] = {}
    for part in PARTS:
        for pair in board.pairs:
            if pair.part == part and {pair.first, pair.second} <= sound:
                groups.setdefault((part, f"{named(part, pair.after)} vs. {named(part, pair.before)}"), []).append(pair)
    rows = {row.label: row for row in board.rows}
    lines = []
    for (_, text), pairs in groups.items():
        robust = [pair.robust.added for pair in pairs if pair.robust]
        higher = sum(added.value > 0 for added in robust)
        times = [found for pair in pairs if (found := board.times(rows[pair.first], rows[pair.second]))]
        cells = (
            TableCell(text, below=counted(len(pairs), "pair")),
            _spread([pair.clean.added for pair in pairs if pair.clean], len(pairs)),
            _spread(robust, len(pairs)),
            TableCell(f"{higher} of {len(robust)}", higher) if robust else TableCell(NONE),
            TableCell.quantity(fmean(times) if times else None, text="× {}"),
        )
        lines.append(SheetLine(cells))
    headings = ("Clean, balanced", f"Worst case {board.threat}", "Worst case higher in", "× training passes")
    return Sheet("Single changes", (*words("Change"), *numbers(*headings)), tuple(lines)).without_empty()


def _spread(effects: Sequence[Measure], pairs: int) -> TableCell:
    """The mean of some effects with their range, and how many they are where not all pairs have one."""
    if not effects:
        return TableCell(NONE)
    values = [effect.value for effect in effects]
    mean, notes = fmean(values), [reach(min(values), max(values))] if len(values) > 1 else []
    if len(values) < pairs:
        notes.append(counted(len(values), "pair"))
    figure = Estimate(mean, None, None, min(effect.n for effect in effects))
    return TableCell(signed(mean), mean, figure, below=", ".join(notes))


def training(board: Board) -> Sheet:
    """What each row costs, and its accuracy on validation data; means over seeds. Empty where nothing is known."""
    passes = [
        (Heading("Training images"), _counted("images")),
        (Heading("Epochs"), _counted("epochs")),
        (Heading("Steps"), _counted("steps")),
        (Heading("Training passes"), _counted("forwards", "backwards")),
        (Heading("Validation"), _validated("validation_accuracy")),
        (Heading("Validation, balanced"), _validated("validation_balanced_accuracy")),
    ]
    trained = any(row.training for row in board.rows)
    sized = {row.label for row in board.rows if row.parameters or row.multiply_adds}
    columns: list[Column] = [MODEL, *(model_size(Detail.PAGE) if sized else ()), *(passes if trained else ())]
    rows = [row for row in board.rows if row.training or row.label in sized or (trained and row.model.external)]
    return by_row("Training cost" if trained else "Model size", columns, rows)


def _counted(*names: str) -> Callable[[Row], TableCell]:
    return lambda row: (
        TableCell.count(sum(_mean(row, name) for name in names), any_of(row)) if row.training else _untold(row)
    )


def _validated(name: str) -> Callable[[Row], TableCell]:
    return lambda row: _validation(row, name) if row.training else _untold(row)


def _untold(row: Row) -> TableCell:
    return TableCell("unknown" if row.model.external else NONE)


def _mean(row: Row, name: str) -> float:
    return fmean(getattr(part, name) for part in row.training.values())


def _validation(row: Row, name: str) -> TableCell:
    """The accuracy of a row's models on validation data, with an interval where it is plain."""
    parts = list(row.training.values())
    n, value = parts[0].validation_images, _mean(row, name)
    rate = wilson(value * n, n) if name == "validation_accuracy" else Measure(value, n=n)
    figure = Estimate.of(rate, [float(getattr(part, name)) for part in parts])
    return TableCell.share(figure, any_of(row), ends=True)
