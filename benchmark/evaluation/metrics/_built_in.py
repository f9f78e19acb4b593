"""The figures of the built-in metrics, which follow from every outcome alike, whatever plugins there are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

from robbench.core.metric import Metric
from robbench.core.registry import Registry
from robbench.core.threat_model import LP_NORMS
from robbench.evaluation.metrics.draws import DRAWS
from robbench.results.schema import Measure, Outcome

_ACCURACIES = ("accuracy", "robust_accuracy", "certified_accuracy")

BUILT_IN_FIGURES = frozenset(
    [f"{mean}{of}" for of in ("precision", "recall", "f1") for mean in ("", "macro_", "weighted_")]
    + [f"{of}{accuracy}" for of in ("", "balanced_", "worst_class_") for accuracy in _ACCURACIES]
    + ["support", "clean_accuracy", "balanced_clean_accuracy", "robust_accuracy_8bit"]
    + ["draws_mean", "draws_std", "draws_min", "draws_max", *(f"worst_of_{draws}" for draws in DRAWS)]
    + ["success_rate", "targeted_success", "targeted_success_mean", "surrogate_agreement", "forwards", "backwards"]
    + [f"{norm}_{of}{where}" for norm in LP_NORMS for of in ("mean", "median", "max") for where in ("", "_success")]
)
"""Names of all of them, without classes; no other metric may use one, whatever the condition."""


@functools.cache
def built_in_metrics() -> Mapping[str, Metric]:
    """The metrics that robbench comes with, by name."""
    entries = Registry(installed=False).entries("metric")
    return {
        name: cast(Metric, entry.cls.make(entry.mark.preset, f'metric "{name}"')) for name, entry in entries.items()
    }


def built_in_figures(outcome: Outcome) -> dict[str, Measure]:
    """All of them by name, as plain numbers."""
    every = built_in_metrics().values()
    found = {name: figure for metric in every for name, figure in metric.measure(outcome).items()}
    return {
        name: Measure(float(figure.value), _plain(figure.low), _plain(figure.high), int(figure.n))
        for name, figure in found.items()
    }


def built_in_versions() -> dict[str, int]:
    """The versions of the built-in metrics by name."""
    return {name: metric.version for name, metric in built_in_metrics().items()}


def _plain(end: float | None) -> float | None:
    return None if end is None else float(end)
