"""The built-in metrics: the figures of ``robbench.evaluation.metrics.measures`` as components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from robbench.core.contracts import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.metrics import measures
from robbench.results.schema import Measure, Outcome


@register_metric("decisions")
@dataclass(frozen=True)
class Decisions(Metric):
    """Accuracy, balanced and per class; precision, recall, F1 and support, after the condition."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.decisions``."""
        return measures.decisions(outcome)


@register_metric("robustness")
@dataclass(frozen=True)
class Robustness(Metric):
    """Robust accuracy under attacks and chains: over all, per class, balanced, and after rounding to 8 bits."""

    version: ClassVar[int] = 2

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.robustness``."""
        return measures.robustness(outcome)


@register_metric("draws")
@dataclass(frozen=True)
class Draws(Metric):
    """Mean and spread over random draws, and the worst of 1, 10 and 100 of them."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.repeated_draws``."""
        return measures.repeated_draws(outcome)


@register_metric("success")
@dataclass(frozen=True)
class Success(Metric):
    """How often attacks succeed, and how often they reach their target."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.success``."""
        return measures.success(outcome)


@register_metric("agreement")
@dataclass(frozen=True)
class Agreement(Metric):
    """How often the scores that attacks follow agree with the decision."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.agreement``."""
        return measures.agreement(outcome)


@register_metric("change")
@dataclass(frozen=True)
class Change(Metric):
    """Norms of the change: mean, median and largest."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.change``."""
        return measures.change(outcome)


@register_metric("passes")
@dataclass(frozen=True)
class Passes(Metric):
    """Forward and backward passes per sample."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """See ``measures.passes``."""
        return measures.passes(outcome)
