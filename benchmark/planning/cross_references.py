"""Whether the rows, conditions and sizes that a grid names are there."""

from __future__ import annotations

from collections.abc import Sequence

from robbench.core.errors import RequestError, did_you_mean
from robbench.core.threat_model import size_name
from robbench.planning.conditions import Condition
from robbench.planning.grid import Grid, named_size, ranked_by
from robbench.planning.plan import Data, Job


def check_named(grid: Grid, conditions: Sequence[Condition], data: Data, jobs: Sequence[Job]) -> None:
    """See that all that a grid names is there on one of its data sets.

    Raises:
        RequestError: At the first name of a row, a condition or a size that is not, with the nearest that is.
    """
    _check_models(grid, conditions, data, jobs)
    _check_rank_by(grid, conditions, data)
    _check_references(grid, data, jobs)


def _check_models(grid: Grid, conditions: Sequence[Condition], data: Data, jobs: Sequence[Job]) -> None:
    rows = list(dict.fromkeys(job.spec.label for job in jobs))
    for position, condition in enumerate(conditions):
        for label in condition.models or ():
            if label not in rows:
                raise RequestError(
                    f'key "conditions.{position}.models" names "{label}", which is no row on {data.choice.label}; '
                    f"{did_you_mean(label, rows)}",
                    grid.where,
                )


def _check_rank_by(grid: Grid, conditions: Sequence[Condition], data: Data) -> None:
    limits = [condition.stages[0].threat for condition in conditions if condition.ranks]
    known = [size_name(threat.norm, threat.radius) for threat in limits]
    asked = grid.content.rank_by
    try:
        wanted = ranked_by(asked, data.eps)
    except ValueError as error:
        raise RequestError(f'key "rank_by" = "{asked}": {error}', grid.where) from None
    if wanted == "clean":
        if all(condition.kind != "clean" for condition in conditions):
            raise RequestError('key "rank_by" = "clean": add "clean" to the conditions', grid.where)
    elif wanted and wanted not in known:
        raise RequestError(
            f'key "rank_by" = "{asked}": no attack ranks there on {data.choice.label}; {did_you_mean(wanted, known)}',
            grid.where,
        )


def _check_references(grid: Grid, data: Data, jobs: Sequence[Job]) -> None:
    rows: dict[str, set[str]] = {}
    for job in jobs:
        rows.setdefault(job.spec.label, set()).update(cell.condition.label for cell in job.cells)
    for position, bound in enumerate(grid.content.bounds):
        where = f'{grid.where}: key "bounds.{position}'
        if data.is_called(bound.dataset) and bound.row not in rows:
            hint = did_you_mean(bound.row, rows)
            raise RequestError(f'{where}.row" = "{bound.row}": no such row is on {data.choice.label}; {hint}')
        try:
            named_size(bound.threat, {})
        except ValueError as error:
            raise RequestError(f'{where}.threat" = "{bound.threat}": {error}') from None
    for position, found in enumerate(grid.content.references):
        if not data.is_called(found.dataset):
            continue
        for key, value, known in (
            ("row", found.row, rows),
            ("condition", found.condition, rows.get(found.row, ())),
        ):
            if value not in known:
                raise RequestError(
                    f'key "references.{position}.{key}" = "{value}": there is no such {key} on '
                    f"{data.choice.label}; {did_you_mean(value, known)}",
                    grid.where,
                )
