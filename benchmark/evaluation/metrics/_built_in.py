"""The figures of the built-in metrics, which follow from every outcome alike, whatever plugins there are."""

from __future__ import annotations

from robbench.core.threat_model import LP_NORMS
from robbench.evaluation.metrics.agreement import Agreement
from robbench.evaluation.metrics.change import ChangeNorms
from robbench.evaluation.metrics.decisions import Decisions
from robbench.evaluation.metrics.draws import DRAWS, Draws
from robbench.evaluation.metrics.passes import Passes
from robbench.evaluation.metrics.robustness import Robustness
from robbench.evaluation.metrics.success import Success
from robbench.results.schema import Measure, Outcome

BUILT_IN_METRICS = (Decisions(), Robustness(), Draws(), Success(), Agreement(), ChangeNorms(), Passes())

BUILT_IN_FIGURES = frozenset(
    [f"{mean}{of}" for of in ("precision", "recall", "f1") for mean in ("", "macro_", "weighted_")]
    + [f"{of}{accuracy}" for of in ("", "balanced_", "worst_class_") for accuracy in ("accuracy", "robust_accuracy")]
    + ["support", "clean_accuracy", "balanced_clean_accuracy", "robust_accuracy_8bit"]
    + ["draws_mean", "draws_std", "draws_min", "draws_max", *(f"worst_of_{draws}" for draws in DRAWS)]
    + ["success_rate", "targeted_success", "targeted_success_mean", "surrogate_agreement", "forwards", "backwards"]
    + [f"{norm}_{of}{where}" for norm in LP_NORMS for of in ("mean", "median", "max") for where in ("", "_success")]
)
"""Names of all of them, without classes; no other metric may use one, whatever the condition."""


def built_in_figures(outcome: Outcome) -> dict[str, Measure]:
    """All of them by name, as plain numbers."""
    found = {name: figure for metric in BUILT_IN_METRICS for name, figure in metric.measure(outcome).items()}
    return {
        name: Measure(float(figure.value), _plain(figure.low), _plain(figure.high), int(figure.n))
        for name, figure in found.items()
    }


def _plain(end: float | None) -> float | None:
    return None if end is None else float(end)
