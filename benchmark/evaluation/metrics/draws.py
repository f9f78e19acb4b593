"""Spread over the random draws of natural perturbations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.statistics import mean_rate
from robbench.results.schema import Measure, Outcome

DRAWS = (1, 10, 100)
"""Numbers of draws whose worst is shown."""


@register_metric("draws")
@dataclass(frozen=True)
class Draws(Metric):
    """Mean and spread over random draws, and the worst of 1, 10 and 100 of them."""

    version: ClassVar[int] = 2

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """How natural perturbations, or chains that begin with them, vary from draw to draw.

        ``draws_mean``, the mean accuracy over all draws; ``draws_std``, ``draws_min`` and ``draws_max``, their spread,
        of two draws or more; ``worst_of_N``, the share of samples right after every one of the first N draws, for N of
        1, 10 and 100 as far as there are so many.
        """
        count = outcome.draws.shape[1]
        if count == 0 or len(outcome) == 0:
            return {}
        right = outcome.draws == outcome.labels[:, None]
        by_draw = right.mean(axis=0)
        figures = {"draws_mean": mean_rate(right.mean(axis=1))}
        if count > 1:
            figures["draws_std"] = Measure(float(by_draw.std(ddof=1)), n=count)
            figures["draws_min"] = Measure(float(by_draw.min()), n=count)
            figures["draws_max"] = Measure(float(by_draw.max()), n=count)
        for first in DRAWS:
            if first <= count:
                figures[f"worst_of_{first}"] = mean_rate(right[:, :first].all(axis=1))
        return figures
