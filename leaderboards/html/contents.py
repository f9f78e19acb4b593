"""All tables of a page, by the part of it that they stand in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from robbench.leaderboards import tables
from robbench.leaderboards.ablations import PARTS
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.html import numbers
from robbench.leaderboards.html.sheets import Records, Sheet, Source, sheet_of
from robbench.leaderboards.markdown import escape
from robbench.leaderboards.reference_comparison import beside_table
from robbench.leaderboards.table import ThreatModel
from robbench.results.schema import Reference


def sheets(board: Board, records: Records, references: Sequence[Reference]) -> dict[str, list[Sheet]]:
    """The tables of a board by part; those without a line are left out.

    Args:
        board: The board.
        records: Its records.
        references: Figures from elsewhere to set beside the board's own.
    """
    rows = {escape(row.label): row.label for row in board.rows}
    place = _places(board, records, rows)
    ranked = {escape(row.label): numbers.ranked_source(board, records, row) for row in board.rows}
    conditions = [numbers.conditions(board, records, tables.share, "Share of all images")]
    conditions.append(numbers.conditions(board, records, tables.balanced, "Averaged over classes"))
    found = {
        "ranking": [numbers.ranking(board, records)],
        "unranked": [sheet_of("Not ranked", tables.unranked(board), rows)],
        "seeds": [sheet_of("What ranks, seed by seed", tables.by_seed(board), rows, lambda texts: ranked[texts[0]])],
        "beside": [sheet_of("Beside the study's own figures", beside_table(board, references), rows, place)],
        "changes": [
            sheet_of(word, tables.changes(board, part), {}, _changes(board))
            for part, word in zip(PARTS, ("Objective", "Training", "Balance"), strict=True)
        ],
        "conditions": conditions,
        "strength": [numbers.curve(board, drawn, median=False) for drawn in board.strength],
        "sizes": [numbers.curve(board, drawn, median=True) for drawn in board.sizes],
        "draws": [sheet_of("Natural perturbations, draw by draw", tables.draws(board), rows, place)],
        "aimed": [sheet_of("Towards a target, or of the smallest change", tables.aimed(board), rows, place)],
        "further": [sheet_of("Metrics that plugins add", tables.further(board), rows, place)],
        "rounding": [sheet_of("Where rounding to 8 bits matters", tables.rounding(board), rows, place)],
        "corruptions": [numbers.corruptions(board, records)],
        "classes": list(numbers.classes(board, records)),
        "checks": [sheet_of("What checks found", tables.checks(board), rows, _checks(board), label=1).without_empty()],
        "data": [sheet_of("Images per class", tables.data(board), {}, total=True)],
        "specifications": [sheet_of("Conditions", tables.specifications(board), {}, _columns(board))],
        "models": [sheet_of("Models", tables.models(board), rows)],
        "components": [sheet_of("What the models are made of", tables.components(board), {})],
        "training": [sheet_of("What training cost", tables.training(board), rows, _models(records))],
        "remarks": [sheet_of("Flags, cautions and notes", tables.remarks(board), rows)],
        "troubles": [sheet_of("Failed, not supported or not run", tables.troubles(board), rows)],
    }
    return {part: [sheet for sheet in made if sheet.lines] for part, made in found.items()}


def decisions(board: Board, records: Records, row: Row) -> list[Sheet]:
    """The row's report, and its confusion matrices, unchanged and under the attack that leaves it least."""
    clean = Source.single(records, row.label, numbers.clean(board) or "")
    report = tables.report(board, row)
    made = [sheet_of("Report, unchanged images", report, {}, lambda _: clean)] if report else []
    for label, table in tables.matrices(board, row):
        source = Source.single(records, row.label, label)
        made.append(sheet_of(label, table, {}, lambda _, source=source: source))  # type: ignore[misc]
    return made


def _places(board: Board, records: Records, rows: Mapping[str, str]) -> Callable[[Sequence[str]], Source | None]:
    """What the numbers of a line rest on that begins with a row and a condition."""
    columns = {escape(condition.label): condition.label for condition in board.conditions}
    return lambda texts: Source.single(records, rows.get(texts[0], ""), columns.get(texts[1], ""))


def _checks(board: Board) -> Callable[[Sequence[str]], Source | None]:
    """What the numbers of a check rest on: its own records, and those of the attacks that it is set beside."""
    found: dict[tuple[str, str], Source] = {}
    for check in board.checks:
        threat = ThreatModel(check.stages[0].norm, check.stages[0].eps or 0.0).label
        for row in board.rows:
            checked = row.checks[check.label]
            if checked is None:
                continue
            beside = board.threats[threat] if checked.others else ()
            named = {"left": checked.left, "ranking attacks": checked.others, "both": checked.both}
            found[escape(check.label), escape(row.label)] = Source.of(
                f"{row.label}: {check.label}",
                [(row.label, label) for label in (check.label, *beside)],
                {name: figure for name, figure in named.items() if figure},
            )
    return lambda texts: found.get((texts[0], texts[1]))


def _columns(board: Board) -> Callable[[Sequence[str]], Source | None]:
    """What the numbers of a condition rest on: every row's records of it."""
    found = {
        escape(condition.label): Source.of(
            f"{condition.label}: all rows", [(row.label, condition.label) for row in board.rows]
        )
        for condition in board.conditions
    }
    return lambda texts: found.get(texts[0])


def _changes(board: Board) -> Callable[[Sequence[str]], Source | None]:
    """What a comparison of two rows rests on: the records of both, unchanged and in the worst cases compared."""
    sizes = dict.fromkeys(size for pair in board.pairs for size in (*pair.elsewhere, board.ranked_by) if size)
    attacks = (label for size in sizes for label in board.threats[size])
    labels = [label for label in (numbers.clean(board), *attacks) if label]
    found = {
        (escape(pair.first), escape(pair.second)): Source.of(
            f"{pair.first} → {pair.second}", [(row, label) for label in labels for row in (pair.first, pair.second)]
        )
        for pair in board.pairs
    }
    return lambda texts: found.get((texts[0], texts[1]))


def _models(records: Records) -> Callable[[Sequence[str]], Source | None]:
    """Where it is told how a row's models were trained: in any of their records."""
    found: dict[str, Source | None] = {}
    for row, condition in records:
        found.setdefault(escape(row), Source.single(records, row, condition))
    return lambda texts: found.get(texts[0])
