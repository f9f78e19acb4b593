"""Robust accuracy under attacks, chains and unions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.metrics._share import share
from robbench.evaluation.statistics import balanced, class_rates
from robbench.evaluation.verdicts import judged
from robbench.evaluation.worst_class import worst_class
from robbench.results.schema import Measure, Outcome


@register_metric("robustness")
@dataclass(frozen=True)
class Robustness(Metric):
    """Robust accuracy under attacks, chains and unions: over all, per class, balanced, and after rounding to 8 bits."""

    version: ClassVar[int] = 4

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """Share of judged samples that are right when clean and right after an attack or a chain.

        ``robust_accuracy`` over all and per class, ``balanced_robust_accuracy``, ``worst_class_robust_accuracy``, and
        ``robust_accuracy_8bit`` where attacked images are rounded to 8 bits before they are judged.
        """
        kept = judged(outcome)
        if outcome.kind not in ("attack", "chain", "union") or not kept.any():
            return {}
        rates = class_rates(outcome.robust[kept], outcome.labels[kept], outcome.num_classes)
        rounded = (outcome.clean == outcome.labels) & (outcome.rounded == outcome.labels)
        figures = {
            "robust_accuracy": share(outcome.robust, kept),
            "balanced_robust_accuracy": balanced(rates),
            "worst_class_robust_accuracy": worst_class(rates),
            "robust_accuracy_8bit": share(rounded, kept),
        }
        return figures | {f"robust_accuracy/{label}": rate for label, rate in enumerate(rates) if rate.n}
