"""The figures of the built-in metrics, which follow from every outcome alike, whatever plugins there are."""

from __future__ import annotations

from robbench.evaluation.metrics.agreement import Agreement
from robbench.evaluation.metrics.change import ChangeNorms
from robbench.evaluation.metrics.decisions import Decisions
from robbench.evaluation.metrics.draws import Draws
from robbench.evaluation.metrics.passes import Passes
from robbench.evaluation.metrics.robustness import Robustness
from robbench.evaluation.metrics.success import Success
from robbench.results.schema import Measure, Outcome

_METRICS = (Decisions(), Robustness(), Draws(), Success(), Agreement(), ChangeNorms(), Passes())


def built_in_figures(outcome: Outcome) -> dict[str, Measure]:
    """All of them by name, as plain numbers."""
    found = {name: figure for metric in _METRICS for name, figure in metric.measure(outcome).items()}
    return {
        name: Measure(float(figure.value), _plain(figure.low), _plain(figure.high), int(figure.n))
        for name, figure in found.items()
    }


def _plain(end: float | None) -> float | None:
    return None if end is None else float(end)
