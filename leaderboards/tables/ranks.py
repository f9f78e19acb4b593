"""Who stands where."""

from __future__ import annotations

from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import NONE, TextTable, escape, interval, percent
from robbench.leaderboards.tables.parts import balanced, extent, of, share, shown


def ranking(board: Board) -> TextTable:
    """Who stands where: clean, perturbed, worst cases, remarks."""
    others = [label for label in board.threats if label != board.ranked_by]
    both = board.imbalanced or not board.ranked_by
    plain = balanced if board.imbalanced else share
    headers = ["Rank", "Model", "Clean", *["Clean, balanced"] * both]
    if board.perturbed:
        headers.append(f"{escape(board.perturbed)}{', balanced' * board.imbalanced}")
    attacks = board.threats[board.ranked_by] if board.ranked_by else ()
    sizes = {label: {rates.share.n for row in board.rows if (rates := row.cells[label].rates)} for label in attacks}
    apart = len(set().union(*sizes.values())) > 1
    for label in attacks:
        n = f" (n = {extent(sizes[label])})" if apart and sizes[label] else ""
        headers.append(f"{escape(label)}{', balanced' * board.imbalanced}{n}")
    if board.ranked_by:
        headers.append(f"**Worst case {escape(board.ranked_by)}**{_samples(board, board.ranked_by)}")
    headers += [f"Worst case {escape(label)}{_samples(board, label)}" for label in others]
    lines = []
    for row in (row for row in board.rows if row.rank):
        clean = board.clean(row)
        line = [row.rank, escape(row.label), interval(of(clean, share))]
        if both:
            line.append(interval(of(clean, balanced)))
        if board.perturbed:
            line.append(shown(row.cells[board.perturbed], plain))
        line += [shown(row.cells[label], plain) for label in attacks]
        if board.ranked_by:
            line.append(f"**{interval(of(board.ranking(row), balanced))}**")
        line += [percent(of(row.worst[label], balanced)) for label in others]
        lines.append([*line, _remarks(board, row)])
    return TextTable([*headers, "Remarks"], lines, left=(0, 1, len(headers)))


def _samples(board: Board, threat: str) -> str:
    sizes = {rates.share.n for row in board.rows if (rates := row.worst[threat])}
    return f" (n = {extent(sizes)})" if sizes else ""


def _remarks(board: Board, row: Row) -> str:
    remarks = [f"**{escape(flag)}**" for flag in row.flags]
    if board.ranked_by and not row.audited:
        remarks.append("not audited")
    if any(found is not None and found.status in ("failed", "missing") for found in row.checks.values()):
        remarks.append("a check failed")
    if len(row.seeds) < len(board.settings["seeds"]):
        remarks.append(f"{len(row.seeds)} of {len(board.settings['seeds'])} seeds")
    if row.model.start:
        remarks.append(f"starts from {escape(row.model.start)}")
    return "; ".join(remarks)


def unranked(board: Board) -> TextTable:
    """The rows without a rank, and why."""
    return TextTable(
        ["Model", "Why"],
        [[escape(row.label), escape(row.unranked)] for row in board.rows if not row.rank],
        left=(0, 1),
    )


def by_seed(board: Board) -> TextTable:
    """What ranks, seed by seed, and its range."""
    seeds = board.settings["seeds"]
    lines = []
    for row in (row for row in board.rows if row.rank):
        found = board.ranking(row)
        values = dict(zip(row.seeds, found.balanced.seeds if found else (), strict=False))
        spread = f"{100 * min(values.values()):.1f}–{100 * max(values.values()):.1f}" if values else NONE
        lines.append(
            [escape(row.label), *(f"{100 * values[seed]:.1f}" if seed in values else NONE for seed in seeds), spread]
        )
    return TextTable(["Model", *(f"Seed {seed}" for seed in seeds), "Range"], lines)
