"""The ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import NONE, number
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
from robbench.leaderboards.tables.parts import (
    MODEL,
    Choose,
    Column,
    after,
    balanced,
    of,
    ranked_evidence,
    samples,
    share,
    shown,
    usual,
    worst_case,
)

COLUMNS = 8
"""So many columns fit the page of a code host."""


def ranking(board: Board) -> Sheet:
    """Rows from best to worst: what they are ranked by, clean and perturbed accuracy, other worst cases, passes."""
    rows = [row for row in board.rows if row.rank]
    choose, suffix = usual(board), ", balanced" * board.imbalanced
    columns: list[Column] = [
        (Heading("Rank", rising=True), lambda row: TableCell(row.rank, float(row.rank.rstrip("=")))),
        (MODEL[0], lambda row: TableCell(row.label, below=_remarks(board, row))),
    ]
    if board.ranked_by:
        columns.append(_worst_column(board, board.ranked_by, leads=True))
    if board.clean_label is not None:
        columns.append((Heading("Clean"), shown(board.clean_label, share, ends=True)))
        if board.imbalanced or not board.ranked_by:
            cell = shown(board.clean_label, balanced, ends=True, bar=not board.ranked_by)
            columns.append((Heading("Clean, balanced"), cell))
    if board.perturbed:
        columns.append((Heading(board.perturbed + suffix), shown(board.perturbed, choose)))
    columns += [_worst_column(board, threat) for threat in board.threats if threat != board.ranked_by]
    if board.ranked_by:
        threat = board.ranked_by
        columns += [_attack_column(board, label, suffix, choose) for label in board.threats[threat]]
        heading = Heading("Attack passes", rising=True, detail=Detail.PAGE)
        columns.append((heading, lambda row: _passes(board, row, threat)))
    fitting = [
        (heading if at < COLUMNS else replace(heading, detail=max(heading.detail, Detail.PAGE)), cell)
        for at, (heading, cell) in enumerate(columns)
    ]
    return by_row("Rows from best to worst", fitting, rows, label=1)


def _worst_column(board: Board, threat: str, *, leads: bool = False) -> Column:
    heading = Heading(f"Worst case {threat}", below=samples(row.worst[threat] for row in board.rows))

    def cell(row: Row) -> TableCell:
        figure = of(row.worst[threat], balanced)
        return TableCell.share(figure, worst_case(board, row, threat), ends=leads, bar=leads)

    return heading, cell


def _attack_column(board: Board, label: str, suffix: str, choose: Choose) -> Column:
    below = samples(row.cells[label].rates for row in board.rows)
    return Heading(label + suffix, below=below, detail=Detail.PAGE), shown(label, choose)


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
    if board.ranked_by and not row.audited:
        remarks.append("not audited")
    if row.above_chance is False:
        remarks.append("not above chance")
    if any(found is not None and found.status in ("failed", "missing") for found in row.checks.values()):
        remarks.append("a check failed")
    if len(row.seeds) < len(board.settings["seeds"]):
        remarks.append(f"{len(row.seeds)} of {len(board.settings['seeds'])} seeds")
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
    """Every row: all conditions plain and balanced, chains with the accuracy after them too, and worst cases."""
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
        columns += [(Heading(label), shown(label, share)), (Heading(f"{label}, balanced"), shown(label, balanced))]
        if condition.kind == "chain":
            columns.append((Heading(f"{label}, plain"), after(label, share)))
    for threat in board.threats:
        heading, cell = _worst_column(board, threat)
        columns.append((replace(heading, text=f"worst case {threat}, balanced"), cell))
    return by_row("Leaderboard", columns, board.rows, label=1)
