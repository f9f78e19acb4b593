"""What the audit asks of the cells of a row: which attacks they are, and which samples those fooled. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from robbench.core.threat_model import precedence, size_name
from robbench.results.schema import Bools, Outcome, Record, StageSpec

DoneCell: TypeAlias = tuple[Record, Outcome]

SHARE = 0.01
LEAST = 3
"""A rule needs more than this share of the samples, and at least so many."""


def first_stage(cell: DoneCell) -> StageSpec:
    """The attack or change that it begins with, mostly the only one."""
    return cell[0].spec.condition.stages[0]


def label_of(cell: DoneCell) -> str:
    """What boards call its condition."""
    return cell[0].spec.condition.label


def norm_attacks(cells: Sequence[DoneCell]) -> list[DoneCell]:
    """Attacks of a norm, alone, on any wrong class of the model as it is used."""
    return [
        cell
        for cell in cells
        if cell[0].spec.condition.kind == "attack"
        and cell[0].spec.condition.target in (None, "all")
        and first_stage(cell).norm != "none"
        and not cell[0].spec.condition.undefended
    ]


def by_threat(cells: Sequence[DoneCell]) -> dict[tuple[str, float], list[DoneCell]]:
    """Attacks of a fixed size, by norm and eps."""
    found: dict[tuple[str, float], list[DoneCell]] = {}
    for cell in norm_attacks(cells):
        eps = first_stage(cell).eps
        if eps is not None and eps > 0:
            found.setdefault((first_stage(cell).norm, eps), []).append(cell)
    return found


def follows_gradients(cell: DoneCell) -> bool:
    """Whether it uses gradients, and more than one step of them."""
    return first_stage(cell).white_box and first_stage(cell).gradient_steps > 1


def is_strong(cell: DoneCell) -> bool:
    """Whether it is one of the attacks that others are compared with: those that rank and follow gradients."""
    return follows_gradients(cell) and not cell[0].spec.condition.check


def fooled_within(cell: DoneCell, norm: str, eps: float) -> Bools:
    """Which samples it fooled by a change of at most eps."""
    outcome = cell[1]
    fooled: Bools = outcome.attempted & (outcome.final != outcome.labels)
    if first_stage(cell).eps is None:
        fooled = fooled & (getattr(outcome, norm) <= eps)
    return fooled


def left_by(cells: Sequence[DoneCell], norm: str, eps: float) -> Mapping[int, bool]:
    """By sample that any of the attacks was run on, whether all that were run on it left it."""
    left: dict[int, bool] = {}
    for cell in cells:
        fooled = fooled_within(cell, norm, eps)
        for sample in np.flatnonzero(cell[1].attempted):
            number = int(cell[1].ids[sample])
            left[number] = left.get(number, True) and not fooled[sample]
    return left


def enough(count: int, of: int) -> bool:
    """Whether a rule that compares samples holds on so many of them."""
    return count >= LEAST and count > SHARE * of


def ranking_attacks(cells: Sequence[DoneCell], rank_by: str) -> list[DoneCell]:
    """The attacks of the threat model that ranks, checks among them."""
    threats = by_threat(cells)
    ranked = [threat for threat, found in threats.items() if not all(cell[0].spec.condition.check for cell in found)]
    if not ranked:
        return []
    reference = cells[0][0].spec.dataset.reference
    return threats[
        min(ranked, key=lambda threat: (size_name(*threat) != rank_by, precedence(threat[0], threat[1], reference)))
    ]
