"""Certified accuracy beside the strongest attack of the same size."""

from __future__ import annotations

from collections.abc import Callable

from robbench.leaderboards.aggregates import Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.certificates import CertifiedCase, CertifiedLine
from robbench.leaderboards.markdown import NONE
from robbench.leaderboards.sheet import Detail, Evidence, Heading, Sheet, TableCell, by_row
from robbench.leaderboards.tables.parts import MODEL, Column, of, usual


def gaps(board: Board) -> list[Sheet]:
    """A table for each certificate: clean ≥ worst case ≥ certified, on the same images, and what lies between."""
    return [_gap(board, case) for case in board.certified.cases]


def _gap(board: Board, case: CertifiedCase) -> Sheet:
    choose = usual(board)

    def cell(pick: Callable[[CertifiedLine], Rates | None]) -> Callable[[Row], TableCell]:
        def made(row: Row) -> TableCell:
            line = case.lines.get(row.label)
            return TableCell.share(of(pick(line) if line else None, choose), _evidence(row, case), ends=True)

        return made

    def strongest(row: Row) -> TableCell:
        line = case.lines.get(row.label)
        return TableCell(line.strongest or NONE if line else NONE)

    columns: list[Column] = [
        MODEL,
        (Heading("Certified"), cell(lambda line: line.certified)),
        (Heading(f"Worst case {case.threat}"), cell(lambda line: line.attacked)),
        (Heading("Gap", rising=True), cell(lambda line: line.gap)),
        (Heading("Clean"), cell(lambda line: line.clean)),
        (Heading("Strongest attack", number=False, detail=Detail.PAGE), strongest),
    ]
    rows = [row for row in board.rows if row.label in case.lines]
    count = next((line.clean.share.n for line in case.lines.values()), 0)
    return by_row(f"{case.method}, {case.threat}, n = {count:,}", columns, rows)


def _evidence(row: Row, case: CertifiedCase) -> Evidence:
    places = [(row.label, label) for label in (case.condition, *case.attacks)]
    return Evidence.of(f"{row.label}: {case.condition} and attacks of {case.threat}", places)
