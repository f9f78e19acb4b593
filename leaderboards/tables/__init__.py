"""The tables of a board's README, in a module for each of its parts."""

from __future__ import annotations

from robbench.leaderboards.tables.classes import matrices, per_class, report
from robbench.leaderboards.tables.columns import aimed, conditions, corruptions, draws, further, rounding, withstood
from robbench.leaderboards.tables.making import changes, training
from robbench.leaderboards.tables.method import (
    checks,
    components,
    data,
    models,
    remarks,
    specifications,
    troubles,
    usual_recipe,
)
from robbench.leaderboards.tables.parts import balanced, share
from robbench.leaderboards.tables.ranks import by_seed, ranking, unranked

__all__ = [
    "aimed",
    "balanced",
    "by_seed",
    "changes",
    "checks",
    "components",
    "conditions",
    "corruptions",
    "data",
    "draws",
    "further",
    "matrices",
    "models",
    "per_class",
    "ranking",
    "remarks",
    "report",
    "rounding",
    "share",
    "specifications",
    "training",
    "troubles",
    "unranked",
    "usual_recipe",
    "withstood",
]
