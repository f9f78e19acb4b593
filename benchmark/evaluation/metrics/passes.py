"""Passes per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.results.schema import Floats, Measure, Outcome


@register_metric("passes")
@dataclass(frozen=True)
class Passes(Metric):
    """Forward and backward passes per sample."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """Mean ``forwards`` and ``backwards`` per sample, over all samples, attacked or not."""
        if len(outcome) == 0 or (outcome.kind == "certificate" and not outcome.forwards.any()):
            return {}  # bounds pass through layers, not through the model
        spent: Mapping[str, Floats] = {"forwards": outcome.forwards, "backwards": outcome.backwards}
        return {name: Measure(float(values.mean()), n=len(outcome)) for name, values in spent.items()}
