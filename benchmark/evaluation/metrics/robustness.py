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
    """Robust accuracy under attacks, chains and unions, and certified accuracy: over all, per class and balanced."""

    version: ClassVar[int] = 4

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """Share of judged samples that are right when clean and right after an attack or a chain.

        ``robust_accuracy`` over all and per class, ``balanced_robust_accuracy``, ``worst_class_robust_accuracy``, and
        ``robust_accuracy_8bit`` where attacked images are rounded to 8 bits before they are judged. Of certificates
        ``certified_accuracy`` and the like: the share that is right and proved to stay so.
        """
        kept = judged(outcome)
        if outcome.kind == "certificate" and kept.any():
            return _figures("certified_accuracy", outcome)
        if outcome.kind not in ("attack", "chain", "union") or not kept.any():
            return {}
        rounded = (outcome.clean == outcome.labels) & (outcome.rounded == outcome.labels)
        return _figures("robust_accuracy", outcome) | {"robust_accuracy_8bit": share(rounded, kept)}


def _figures(name: str, outcome: Outcome) -> dict[str, Measure]:
    """What is right and stays so, over all, balanced, of the worst class and per class."""
    kept = judged(outcome)
    rates = class_rates(outcome.robust[kept], outcome.labels[kept], outcome.num_classes)
    figures = {
        name: share(outcome.robust, kept),
        f"balanced_{name}": balanced(rates),
        f"worst_class_{name}": worst_class(rates),
    }
    return figures | {f"{name}/{label}": rate for label, rate in enumerate(rates) if rate.n}
