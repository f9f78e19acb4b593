"""Rows, conditions, threat models and cells of a board, found by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from robbench.core.component import number
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.threat_model import LP_NORMS, format_eps
from robbench.leaderboards.aggregates import Rates, rates, scores
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.board_making import board_data
from robbench.leaderboards.comparison import comparable, worst_by_seed
from robbench.leaderboards.table import Table, ThreatModel, Threats, is_smallest_change
from robbench.leaderboards.visible_cells import visible_cells
from robbench.results.schema import BoardNote, CellResult, ConditionSpec
from robbench.results.store import Store


class MissingResult(RequestError):
    """A row has no result under a condition: the cell failed, is not supported, or was not run."""


@dataclass(frozen=True, eq=False, repr=False)
class BoardResults:
    """The cells of a board with what the board says.

    Attributes:
        name: Name of the board.
        note: What the board says that does not follow from its cells.
        cells: Records with their outcomes, None unless done.
        store: Where the cells lie with their images; None for a published board.
    """

    name: str
    note: BoardNote
    cells: tuple[CellResult, ...]
    store: Store | None = None

    @cached_property
    def board(self) -> Board:
        """Everything that the board says, as plain data."""
        return board_data(self.note.title, self.note.grid, self.cells, self.note.rank_by)

    @cached_property
    def table(self) -> Table:
        """The cells in rows and columns."""
        return Table.of(visible_cells(self.cells))

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the models, best first.

        Example:
            >>> report.rows
            ('cross-entropy · fgm', 'cross-entropy · no defense')
        """
        return tuple(row.label for row in self.board.rows)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Labels of the conditions: the board's columns, common corruptions, and checks of the audit.

        Example:
            >>> report.conditions
            ('clean', 'fgsm@8/255', 'strong@8/255')
        """
        return tuple(self._specs)

    @property
    def threats(self) -> tuple[str, ...]:
        """The threat models that worst cases are known of, the one that ranks first, as ``Linf 8/255``."""
        return tuple(self.board.threats)

    def row(self, name: str | None = None, where: str = "row") -> Row:
        """What the board says of a model.

        Args:
            name: The row; may be left out where there is a single one.
            where: What a complaint names.

        Raises:
            RequestError: If there is none of that name, or there are several and none is named.
        """
        known = {row.label: row for row in self.board.rows}
        if name is None:
            if len(known) > 1:
                listed = ", ".join(f'"{label}"' for label in known)
                raise RequestError(f"the board has {len(known)} rows, name one: {listed}", where)
            return next(iter(known.values()))
        if name not in known:
            raise RequestError(f'there is no row "{name}"; {did_you_mean(str(name), known)}', where)
        return known[name]

    def condition(self, label: str, where: str = "condition") -> ConditionSpec:
        """A condition as it was run, by its label.

        Args:
            label: The label.
            where: What a complaint names.

        Raises:
            RequestError: If there is none of that label.
        """
        if label not in self._specs:
            raise RequestError(f'there is no condition "{label}"; {did_you_mean(str(label), self._specs)}', where)
        return self._specs[label]

    @cached_property
    def _specs(self) -> Mapping[str, ConditionSpec]:
        table = self.table
        return {spec.label: spec for spec in (*table.conditions, *table.corruptions, *table.checks)}

    def threat(self, norm: str | None = None, eps: float | str | None = None, where: str | None = None) -> ThreatModel:
        """The threat model of a norm and a size; see ``worst_case``.

        Args:
            norm: The norm.
            eps: The size.
            where: What a complaint names; the argument that does not fit where it is None.

        Raises:
            RequestError: If no attack was run within it.
        """
        known = list(self._threats)
        if norm is not None and norm not in LP_NORMS:
            raise RequestError(f'there is no norm "{norm}"; {did_you_mean(str(norm), LP_NORMS)}', where or "norm")
        if not known:
            raise RequestError("the board has no attack within a ball, so no worst case", where or "norm")
        wanted = norm or known[0].norm
        size = None if eps is None else _size(eps, where or "eps")
        for threat in known:
            if threat.norm == wanted and (size is None or math.isclose(threat.eps, size, rel_tol=1e-9)):
                return threat
        text = wanted if size is None else f"{wanted} {format_eps(size)}"
        there = ", ".join(f"{threat.norm} {format_eps(threat.eps)}" for threat in known)
        raise RequestError(f"no attack was run within {text}; there are {there}", where or ("eps" if size else "norm"))

    def _cell(self, condition: str, row: str | None, seed: int | None) -> CellResult:
        """The cell of a row under a condition.

        Raises:
            RequestError: If one of them is unknown, there is no such cell, or there are several and no seed is named.
        """
        label, spec = self.row(row).label, self.condition(condition)
        place = self.table.places.get((label, spec.label), {})
        if not place:
            raise MissingResult(f'"{label}" was not run under it', spec.label)
        if seed is None and len(place) > 1:
            raise RequestError(f'"{label}" has the seeds {", ".join(map(str, sorted(place)))}; name one', "seed")
        if seed is not None and seed not in place:
            there = ", ".join(map(str, sorted(place)))
            raise RequestError(f'"{label}" has no seed {seed} under {spec.label}; there are {there}', "seed")
        return next(iter(place.values())) if seed is None else place[seed]

    @cached_property
    def _threats(self) -> Threats:
        return self.table.threats(self.note.rank_by)

    def _rates(self, spec: ConditionSpec, row: Row) -> Rates:
        """The rates of a row under a condition, on the images that the board shows it on; of a check on its own."""
        if is_smallest_change(spec):
            norm = spec.stages[0].norm
            raise RequestError(f'it looks for the smallest change; see curve("{norm}")', spec.label)
        self._demand(row, [spec])
        entry = row.cells.get(spec.label)
        if entry is not None and entry.rates is not None:
            return entry.rates
        outcomes = self.table.outcomes(row.label, spec.label) or []
        found = rates([scores(outcome) for outcome in outcomes], self.table.num_classes) if outcomes else None
        if found is None:
            raise MissingResult(f'"{row.label}" has no sample under it', spec.label)
        return found[0]

    def _demand(self, row: Row, specs: Sequence[ConditionSpec]) -> None:
        """See that a row has a result under some conditions.

        Raises:
            MissingResult: At the first under which it has none.
        """
        for spec in specs:
            status, reason = self.table.status(row.label, spec.label)
            if status != "done":
                raise MissingResult(f'"{row.label}" has no result: {status}: {reason}', spec.label)

    def _worst_by_seed(self, row: str, threat: ThreatModel) -> dict[int, Rates]:
        """The worst case of a row seed by seed, on the images that the board shows it on."""
        cases = comparable(self.table, self._threats, ())
        images = next(images for case, images in cases if threat.label in case.threats)
        by_seed = worst_by_seed(self.table, row, self._threats[threat], images)
        found = {seed: rates([part], self.table.num_classes) for seed, part in by_seed.items()}
        return {seed: made[0] for seed, made in found.items() if made}


def _size(eps: float | str, where: str) -> float:
    try:
        return number(eps) if isinstance(eps, str) else float(eps)
    except (TypeError, ValueError):
        raise RequestError(f'"{eps}" is no size of change; write 0.1 or 8/255', where) from None
