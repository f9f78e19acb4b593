"""Success rates of attacks, untargeted and targeted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.evaluation.metrics._share import share
from robbench.results.schema import Measure, Outcome


@register_metric("success")
@dataclass(frozen=True)
class Success(Metric):
    """How often attacks succeed, and how often they reach their target."""

    version: ClassVar[int] = 2

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """Success rates over the samples that are attempted and right when clean.

        ``success_rate``: the prediction became wrong. ``targeted_success``: it became the target, of samples not in
        that class. Where all targets are tried in turn, ``targeted_success`` is that some target was reached (the worst
        case), and ``targeted_success_mean`` is over pairs of sample and target, with its interval as if a sample
        counted once.
        """
        if outcome.kind not in ("attack", "chain", "union"):
            return {}
        tried = outcome.attempted & (outcome.clean == outcome.labels)
        figures = {"success_rate": share(outcome.final != outcome.labels, tried)}
        if outcome.every_target.shape[1]:
            known = (outcome.every_target >= 0) & tried[:, None]
            reached = known & (outcome.every_target == np.arange(outcome.every_target.shape[1]))
            some = known.any(axis=1)
            figures["targeted_success"] = share(reached.any(axis=1), some)
            figures["targeted_success_mean"] = share(reached.sum(axis=1) / np.maximum(1, known.sum(axis=1)), some)
        elif (outcome.targets >= 0).any():
            aimed = tried & (outcome.targets >= 0) & (outcome.targets != outcome.labels)
            figures["targeted_success"] = share(outcome.final == outcome.targets, aimed)
        return {name: figure for name, figure in figures.items() if figure.n}
