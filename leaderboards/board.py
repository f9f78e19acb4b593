"""What a board says, as plain data: the one source of its markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robbench.leaderboards.ablations import Change, Pair
from robbench.leaderboards.aggregates import Rates
from robbench.leaderboards.certificates import Certificates
from robbench.leaderboards.check_results import Checked
from robbench.leaderboards.comparison import (
    ComparableCases,
)
from robbench.leaderboards.corruption_results import Corrupted
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.entries import Entry
from robbench.leaderboards.optimality import NormComparison
from robbench.results.schema import ConditionSpec, DatasetSpec, ModelSpec, Training

IMBALANCE = 1.5
"""From this ratio of the largest to the smallest class of the test set on, balanced figures stand beside plain ones."""


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        rank: ``1``, or ``1=`` where it is tied with others; empty where it is not ranked.
        unranked: Why it is not ranked.
        worst: The worst case by threat model, on the images of its comparison; None where a condition is not done.
        hardest: The condition of the ranking threat model that leaves the least; None where there is none.
        flags: Blocking audit flags, each with what was found.
        cautions: Audit notes, each with its remedy.
        above_chance: Whether the interval of balanced clean accuracy lies above that of a constant prediction; None
            without one.
        checks: What checks found, by condition; None where a check is not for this row.
        training: What training the model cost, by seed; of older records nothing.
        parameters, multiply_adds: How many it has, and one prediction takes; 0 where that is not known.
        alongside: Per comparison of the board, accuracy under other conditions on its images, by condition, where that
            is not the condition's own; None where the condition was not run on all of them.
    """

    model: ModelSpec
    seeds: tuple[int, ...]
    rank: str
    unranked: str
    audited: bool
    flags: Mapping[str, str]
    cautions: Mapping[str, str]
    notes: tuple[str, ...]
    cells: Mapping[str, Entry]
    checks: Mapping[str, Checked | None]
    worst: Mapping[str, Rates | None]
    hardest: str | None
    training: Mapping[str, Training] = field(default_factory=dict)
    parameters: int = 0
    multiply_adds: int = 0
    above_chance: bool | None = None
    alongside: tuple[Mapping[str, Rates | None], ...] = ()

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def undefended(self) -> bool:
        """Whether the model was trained without a defense and has none at inference; of others' that is not known."""
        return self.model.external is None and all(part.name == "none" for part in self.model.defenses)

    def compared(self, condition: str, at: int = 0) -> Rates | None:
        """Accuracy under a condition on the images of one of the board's comparisons, None where there is none."""
        own = self.cells[condition].rates
        return self.alongside[at].get(condition, own) if at < len(self.alongside) else own


@dataclass(frozen=True)
class Board:
    """Everything that a board says.

    Attributes:
        ranked_by: Label of the threat model that ranks, or None where balanced clean accuracy does.
        chosen: Whether the grid says what to rank by.
        reference: Whether ``ranked_by`` is at the data set's reference eps.
        checks: Conditions that have no part in the ranking: they look for what the others missed.
        threats: Conditions by threat model.
        comparisons: Which threat models share a table: the same attacks, the same images. The one that ranks is first.
        same_images: Labels of conditions, those together that were run on the same images.
        perturbed: The natural perturbation that the ranking shows: ``perturbation``, or the one that costs most.
        pairs: Effects of single changes: rows without an audit flag that differ in one part alone.
        margin: How far the best row lies above the best undefended one; None where that is the same row or missing.
        strength: Robust accuracy over eps, for each norm in which the same attacks were run at two eps or more.
        sizes: Robust accuracy over the size of the change: of the smallest change known, for each norm in which attacks
            look for it; and for each such attack towards a target.
        minimal_norms: Attacks that look for the smallest change beside the best known distances, for each norm that has
            two or more.
        certified: Certificates beside the attacks of the same size.
        corrupted: The rows under the suite of common corruptions, by label; the baseline is the first.
        imbalanced: Whether the test set is.
        rows: From best to worst, those that are not ranked last.
        settings: Protocol, precisions, devices and library versions, as lists of all that occur.
    """

    title: str
    grid: str
    dataset: DatasetSpec
    conditions: tuple[ConditionSpec, ...]
    checks: tuple[ConditionSpec, ...]
    ranked_by: str | None
    chosen: bool
    reference: bool
    threats: Mapping[str, tuple[str, ...]]
    comparisons: tuple[ComparableCases, ...]
    same_images: tuple[tuple[str, ...], ...]
    perturbed: str | None
    pairs: tuple[Pair, ...]
    margin: Change | None
    strength: tuple[Curve, ...]
    sizes: tuple[Curve, ...]
    minimal_norms: tuple[NormComparison, ...]
    certified: Certificates
    corrupted: Mapping[str, Corrupted]
    imbalanced: bool
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]

    def ranking(self, row: Row) -> Rates | None:
        """What the row is ranked by."""
        return row.worst[self.ranked_by] if self.ranked_by else self.clean(row)

    @property
    def threat(self) -> str | None:
        """Label of the threat model whose worst case stands beside clean accuracy: the one that ranks, if one does."""
        return next(iter(self.threats), None)

    @property
    def attacked(self) -> int:
        """Which of the comparisons that worst case is in."""
        return next((at for at, one in enumerate(self.comparisons) if self.threat in one.threats), 0)

    def robust(self, row: Row) -> Rates | None:
        """That worst case of a row."""
        return row.worst[self.threat] if self.threat else None

    def clean(self, row: Row) -> Rates | None:
        """The row's clean accuracy on the images of the ranking."""
        return row.compared(self.clean_label) if self.clean_label else None

    @property
    def heading(self) -> str:
        """The title with the data set: boards of one grid have the same title."""
        return heading(self.title, self.dataset.label)

    @property
    def clean_label(self) -> str | None:
        """The label of the clean condition, or None where the board has none."""
        return next((condition.label for condition in self.conditions if condition.kind == "clean"), None)

    @property
    def sound(self) -> tuple[Row, ...]:
        """The ranked rows without an audit flag: those that findings are about."""
        return tuple(row for row in self.rows if row.rank and not row.flags)

    @property
    def undefended(self) -> Row | None:
        """The best undefended row."""
        return next((row for row in self.sound if row.undefended), None)

    @property
    def baseline(self) -> Row | None:
        """The best undefended row; where clean accuracy ranks attacked rows, the best of those without balancing."""
        if self.ranked_by or not self.threats:
            return self.undefended
        return next((row for row in self.sound if row.undefended and row.model.balancer.name == "none"), None)

    def times(self, first: Row, second: Row) -> float | None:
        """How many times the passes of the first row's training the second's took, that of their starts included."""
        before, after = self._passes(first), self._passes(second)
        return after / before if before and after else None

    def _passes(self, row: Row) -> float:
        parts = [part.forwards + part.backwards for part in row.training.values()]
        start = next((other for other in self.rows if other.label == row.model.start), None)
        return float(np.mean(parts)) + (self._passes(start) if start else 0.0) if parts else 0.0


def heading(title: str, dataset: str) -> str:
    """The heading of a board of a data set."""
    return f"{title} ({dataset})" if title else dataset
