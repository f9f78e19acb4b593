"""Which of a row's other cells a cell rests on: those whose survivors it draws from, or whose worst case it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robbench.core.errors import RequestError, did_you_mean
from robbench.core.threat_model import Threat, format_eps
from robbench.planning.conditions import Condition
from robbench.planning.plan import Cell


def needed_cells(condition: Condition, before: Iterable[Cell]) -> tuple[str, ...]:
    """Keys of the cells that a condition rests on; none for most.

    Args:
        condition: The condition.
        before: The row's other cells, as far as they rest on none.
    """
    if not (condition.survivors or condition.union):
        return ()
    ranking = _ranking(before)
    if condition.survivors:
        threat = condition.stages[0].threat
        return tuple(cell.key for cell in ranking if not cell.peers and cell.condition.within(threat))
    # By key, since the order of conditions in a grid is no part of what a cell is.
    return tuple(key for threat in condition.union for key in sorted(_within(threat, ranking)))


def missing_attack(condition: Condition, before: Iterable[Cell]) -> str | None:
    """Why a union cannot be had of a row, or None: a threat model in which no ranking attack can be run."""
    ranking = _ranking(before) if condition.union else []
    missing = next((threat for threat in condition.union if not _within(threat, ranking)), None)
    return f"no attack that ranks in {missing.norm} {format_eps(missing.radius)} can be run" if missing else None


def check_unions(conditions: Sequence[Condition], dataset: str, where: str) -> None:
    """See that every threat model of a union has an attack that ranks.

    Args:
        conditions: All of a data set's.
        dataset: What it is called.
        where: The grid, for messages.

    Raises:
        RequestError: At the first that has none.
    """
    known = dict.fromkeys(_asked(condition.stages[0].threat) for condition in conditions if condition.ranks)
    for condition in conditions:
        for wanted in map(_asked, condition.union):
            if wanted not in known:
                reason = f"no attack ranks in {wanted} on {dataset}; {did_you_mean(wanted, known)}"
                raise RequestError(f'"{condition.label}": {reason}', where)


def _ranking(before: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in before if cell.condition.ranks and not cell.refusal]


def _within(threat: Threat, ranking: Iterable[Cell]) -> list[str]:
    return [cell.key for cell in ranking if cell.condition.within(threat)]


def _asked(threat: Threat) -> str:
    return f"{threat.norm}:{format_eps(threat.radius)}"
