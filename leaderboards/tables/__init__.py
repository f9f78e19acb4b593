"""The tables of a board as data, in a module for each of its parts; ``sheets`` has all of them."""

from __future__ import annotations

from robbench.leaderboards.tables.classes import class_figures, decisions, matrices, per_class, report
from robbench.leaderboards.tables.contents import sheets
from robbench.leaderboards.tables.making import changes, effects, training
from robbench.leaderboards.tables.method import checks, components, data, models, remarks, troubles, usual_recipe
from robbench.leaderboards.tables.ranks import by_seed, leaderboard, ranking, unranked
from robbench.leaderboards.tables.robustness import (
    aimed,
    conditions,
    corruption_figures,
    corruptions,
    curve,
    draws,
    further,
    references,
    rounding,
    specifications,
)

__all__ = [
    "aimed",
    "by_seed",
    "changes",
    "checks",
    "class_figures",
    "components",
    "conditions",
    "corruption_figures",
    "corruptions",
    "curve",
    "data",
    "decisions",
    "draws",
    "effects",
    "further",
    "leaderboard",
    "matrices",
    "models",
    "per_class",
    "ranking",
    "references",
    "remarks",
    "report",
    "rounding",
    "sheets",
    "specifications",
    "training",
    "troubles",
    "unranked",
    "usual_recipe",
]
