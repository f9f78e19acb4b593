"""Agreement between the scores that attacks follow and the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.metrics._share import share
from robbench.results.schema import Measure, Outcome


@register_metric("agreement")
@dataclass(frozen=True)
class Agreement(Metric):
    """How often the scores that attacks follow agree with the prediction."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """``surrogate_agreement``: how often the differentiable scores and the prediction agree.

        On attacked images for attacks and chains, on clean ones for the clean condition. It is lower than it seems at
        points where an attack stopped at the first change of the prediction.
        """
        if outcome.kind in ("natural", "union", "certificate"):
            return {}
        looked = np.ones(len(outcome), dtype=np.bool_) if outcome.kind == "clean" else outcome.attempted
        figure = share(outcome.scored == outcome.final, looked)
        return {"surrogate_agreement": figure} if figure.n else {}
