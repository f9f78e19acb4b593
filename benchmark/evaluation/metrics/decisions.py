"""Accuracy and the classification report after the condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.statistics import balanced, class_rates, wilson
from robbench.evaluation.worst_class import worst_class
from robbench.results.schema import Ints, Measure, Outcome


def confusion(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Counts by true class (rows) and prediction (columns), shape ``(K, K)``; others than the classes are left out."""
    known = (np.minimum(labels, predictions) >= 0) & (np.maximum(labels, predictions) < num_classes)
    counts: Ints = np.bincount((labels * num_classes + predictions)[known], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def classification(labels: Ints, predictions: Ints, num_classes: int) -> dict[str, Measure]:
    """What a classification report holds.

    ``accuracy``, ``balanced_accuracy``, ``worst_class_accuracy``; ``precision``, ``recall`` and ``f1``, per class and
    as ``macro_`` and ``weighted_`` averages over the classes that have samples; ``support`` per class. The precision of
    a class that is never predicted is 0 by convention, without an interval. F1 has no interval here; boards give one to
    its macro average, see ``robbench.evaluation.macro_f1``.
    """
    n = len(labels)
    if n == 0:
        return {}
    table = confusion(labels, predictions, num_classes)
    hits, support, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    scores = 2 * hits / np.maximum(support + predicted, 1)
    recall = [wilson(int(hit), int(count)) for hit, count in zip(hits, support, strict=True)]
    precision = [
        wilson(int(hit), int(count)) if count else Measure(0.0) for hit, count in zip(hits, predicted, strict=True)
    ]
    f1 = [Measure(float(score), n=int(count)) for score, count in zip(scores, support, strict=True)]
    figures = {
        "accuracy": wilson(int(hits.sum()), n),
        "balanced_accuracy": balanced(recall),
        "worst_class_accuracy": worst_class(recall),
    }
    weights = support / n
    for name, rates in (("precision", precision), ("recall", recall), ("f1", f1)):
        values = np.array([rate.value for rate in rates])
        figures[f"macro_{name}"] = Measure(float(values[support > 0].mean()), n=n)
        figures[f"weighted_{name}"] = Measure(math.fsum(weights * values), n=n)
        figures |= {f"{name}/{label}": rates[label] for label in np.flatnonzero(support)}
    figures |= {f"support/{label}": Measure(float(count), n=n) for label, count in enumerate(support)}
    return figures


@register_metric("decisions")
@dataclass(frozen=True)
class Decisions(Metric):
    """Accuracy, balanced and per class; precision, recall, F1 and support, after the condition."""

    version: ClassVar[int] = 3

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """The classification report after the condition, and the accuracy of the same samples when clean.

        For an attack ``accuracy`` is the robust accuracy, since samples whose clean prediction is wrong keep it; for a
        chain it is the plain accuracy after it. With one target for all, both are over the samples of that class too,
        with their clean predictions. ``clean_accuracy`` and ``balanced_clean_accuracy`` are of the clean images.
        """
        figures = classification(outcome.labels, outcome.final, outcome.num_classes)
        if outcome.kind != "clean" and len(outcome):
            right = outcome.clean == outcome.labels
            figures["clean_accuracy"] = wilson(int(right.sum()), len(outcome))
            figures["balanced_clean_accuracy"] = balanced(class_rates(right, outcome.labels, outcome.num_classes))
        return figures
