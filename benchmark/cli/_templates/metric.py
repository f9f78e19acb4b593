"""The metric my-metric: passes for each success."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robbench import Measure, Metric, Outcome, register_metric


@register_metric(
    "my-metric",
    brief="forward passes per success",
)
@dataclass(frozen=True)
class MyMetric(Metric):
    """Forward passes spent for each image that an attack fools."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """The figure by its name, or none where it means nothing."""
        correct = outcome.clean == outcome.labels
        fooled = correct & (outcome.final != outcome.labels)
        count = int(fooled.sum())
        if outcome.kind != "attack" or not count:
            return {}
        spent = float(outcome.forwards.sum()) / count
        return {"my-metric": Measure(spent, n=count)}
