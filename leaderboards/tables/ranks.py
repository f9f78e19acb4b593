"""The ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import NONE, listed, number
from robbench.leaderboards.sheet import (
    Detail,
    Heading,
    Sheet,
    SheetLine,
    TableCell,
    by_row,
    numbers,
    texts,
    word,
    words,
)
from robbench.leaderboards.table import is_smallest_change
from robbench.leaderboards.tables.parts import (
    MODEL,
    Column,
    after,
    balanced,
    beside,
    covers,
    of,
    ranked_evidence,
    share,
    shown,
    union_name,
    worst_case,
)

COLUMNS = 8
"""So many columns fit the page of a code host."""


def ranking(board: Board) -> Sheet:
    """Rows from best to worst: worst case, clean and perturbed accuracy, other sizes of the same attacks, passes.

    All averaged over classes and on the same images, but where clean accuracy ranks and the attacks were run on fewer.
    """
    rows = [row for row in board.rows if row.rank]
    columns: list[Column] = [(MODEL[0], lambda row: TableCell(row.label, below=_remarks(board, row)))]
    if len(board.rows) > 1:
        place = Heading("Rank", rising=True)
        columns.insert(0, (place, lambda row: TableCell(row.rank, float(row.rank.rstrip("=")))))
    named = len(columns) - 1
    sizes = [f"n = {comparison.n:,}" for comparison in board.comparisons] or [""]
    if board.ranked_by:
        columns.append(_worst_column(board, board.ranked_by, sizes[0], leads=True))
        columns += [
            (Heading(f"Certified ({case.method})"), beside(board, case.condition, balanced))
            for case in board.certified.cases
            if case.threat == board.ranked_by and covers(board, case.condition)
        ]
    clean = board.clean_label
    if clean is not None and covers(board, clean):
        leads = not board.ranked_by
        heading = Heading("Clean", below=sizes[0] if leads else "")
        columns.append((heading, beside(board, clean, balanced, ends=True, bar=leads)))
        if board.imbalanced:
            columns.append((Heading("Clean, plain"), beside(board, clean, share)))
    if board.perturbed and covers(board, board.perturbed):
        columns.append((Heading(board.perturbed), beside(board, board.perturbed, balanced)))
    threat, at = board.threat, board.attacked
    if threat:
        if not board.ranked_by:
            columns.append(_worst_column(board, threat, sizes[at], ends=True))
        columns += [_worst_column(board, other) for other in board.comparisons[at].threats if other != threat]
        unions = [condition for condition in board.conditions if condition.union and covers(board, condition.label, at)]
        columns += [(Heading(union_name(spec)), beside(board, spec.label, balanced, at)) for spec in unions]
        attacks = board.threats[threat] if len(board.threats[threat]) > 1 else ()
        columns += [(Heading(label, detail=Detail.PAGE), beside(board, label, balanced, at)) for label in attacks]
        heading = Heading("Attack passes", rising=True, detail=Detail.PAGE)
        columns.append((heading, lambda row: _passes(board, row, threat)))
    fitting = [
        (heading if at < COLUMNS else replace(heading, detail=max(heading.detail, Detail.PAGE)), cell)
        for at, (heading, cell) in enumerate(columns)
    ]
    return by_row("Rows from best to worst" if len(rows) > 1 else "The model", fitting, rows, label=named)


def others(board: Board) -> Iterator[Sheet]:
    """What cannot stand in the ranking: worst cases of other attacks or on other images, a table for each kind."""
    for at, comparison in enumerate(board.comparisons[1:], 1):
        columns: list[Column] = [MODEL]
        for label in (board.clean_label, board.perturbed):
            if label is not None and covers(board, label, at):
                name = "Clean" if label == board.clean_label else label
                columns.append((Heading(name), beside(board, label, balanced, at, ends=not comparison.threats)))
        columns += [_worst_column(board, threat) for threat in comparison.threats]
        under = f"Under {listed(comparison.attacks)}" if comparison.attacks else "Without an adversary"
        rows = [row for row in board.rows if any(cell(row).figure for _, cell in columns[1:])]
        yield by_row(f"{under}, n = {comparison.n:,}", columns, rows)


def _worst_column(board: Board, threat: str, below: str = "", *, ends: bool = False, leads: bool = False) -> Column:
    def cell(row: Row) -> TableCell:
        figure = of(row.worst[threat], balanced)
        return TableCell.share(figure, worst_case(board, row, threat), ends=ends or leads, bar=leads)

    return Heading(f"Worst case {threat}", below=below), cell


def _passes(board: Board, row: Row, threat: str) -> TableCell:
    """Passes that the attacks of a threat model spent on an image of the row."""
    found = [row.cells[label].details or {} for label in board.threats[threat]]
    spent = [
        math.fsum(details[name].value for details in found if name in details) for name in ("forwards", "backwards")
    ]
    hint = f"{number(spent[0])} forward + {number(spent[1])} backward passes per image, all ranking attacks"
    return TableCell(number(sum(spent)), sum(spent), evidence=worst_case(board, row, threat), hint=hint)


def _remarks(board: Board, row: Row) -> str:
    remarks = [f"flag: {flag}" for flag in row.flags]
    if board.threat and not row.audited:
        remarks.append("not audited")
    if row.above_chance is False:
        remarks.append("not above chance")
    if any(found is not None and found.status in ("failed", "missing") for found in row.checks.values()):
        remarks.append("a check failed")
    if len(row.seeds) < len(board.settings["seeds"]):
        few = f"{len(row.seeds)} of {len(board.settings['seeds'])} seeds"
        remarks.append("one checkpoint" if row.model.external and len(row.seeds) == 1 else few)
    if row.model.start:
        remarks.append(f"starts from {row.model.start}")
    return "; ".join(remarks)


def unranked(board: Board) -> Sheet:
    """The rows without a rank, and why."""
    rows = [row for row in board.rows if not row.rank]
    return by_row("Not ranked", [MODEL, (word("Why"), lambda row: TableCell(row.unranked))], rows)


def by_seed(board: Board) -> Sheet:
    """What rows are ranked by, seed by seed, and its range."""
    seeds = board.settings["seeds"]
    lines = []
    for row in (row for row in board.rows if row.rank):
        found, evidence = board.ranking(row), ranked_evidence(board, row)
        values = dict(zip(row.seeds, found.balanced.seeds if found else (), strict=False))
        cells = [replace(TableCell.percentage(values.get(seed)), evidence=evidence) for seed in seeds]
        ends = f"{100 * min(values.values()):.1f}–{100 * max(values.values()):.1f}" if values else NONE
        spread = max(values.values()) - min(values.values()) if values else None
        made = (TableCell(row.label), *cells, TableCell(ends, spread, evidence=evidence))
        lines.append(SheetLine(made, row.label))
    headings = (*words("Model"), *numbers(*(f"Seed {seed}" for seed in seeds), "Range"))
    return Sheet("Seed by seed", headings, tuple(lines))


def leaderboard(board: Board) -> Sheet:
    """Every row: conditions plain and balanced, chains with the accuracy after them too, and worst cases.

    Attacks that look for the smallest change are left out: without its size, their success says nothing.
    """
    facts: Sequence[tuple[str, Callable[[Row], object]]] = (
        ("rank", lambda row: row.rank),
        ("model", lambda row: row.label),
        ("seeds", lambda row: " ".join(map(str, row.seeds))),
        ("audited", lambda row: row.audited),
        ("flags", lambda row: "; ".join(row.flags)),
        ("above chance", lambda row: "" if row.above_chance is None else row.above_chance),
        ("not ranked because", lambda row: row.unranked),
    )
    columns: list[Column] = [
        (word(name), lambda row, fact=fact: texts(str(fact(row)))[0])  # type: ignore[misc]
        for name, fact in facts
    ]
    for condition in board.conditions:
        label = condition.label
        if is_smallest_change(condition):
            continue
        columns += [(Heading(label), shown(label, share)), (Heading(f"{label}, balanced"), shown(label, balanced))]
        if condition.kind == "chain":
            columns.append((Heading(f"{label}, plain"), after(label, share)))
    for threat in board.threats:
        heading, cell = _worst_column(board, threat)
        columns.append((replace(heading, text=f"worst case {threat}, balanced"), cell))
    return by_row("Leaderboard", columns, board.rows, label=1)
