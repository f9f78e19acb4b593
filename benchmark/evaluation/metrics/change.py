"""Norms of the change that a condition makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robbench.core.metric import Metric
from robbench.core.registry import register_metric
from robbench.core.threat_model import LP_NORMS
from robbench.evaluation.verdicts import succeeded
from robbench.results.schema import Measure, Outcome


@register_metric("change")
@dataclass(frozen=True)
class ChangeNorms(Metric):
    """Norms of the change: mean, median and largest."""

    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """``linf_mean``, ``linf_median``, ``linf_max`` of the whole change, over the samples that were changed.

        The same with ``_success`` behind, as in ``l2_median_success``, over those where the condition succeeded: what
        counts for attacks that look for the smallest change.
        """
        # Sizes in one norm of changes that were limited in different ones tell nothing together.
        if outcome.kind in ("clean", "union", "certificate"):
            return {}
        masks = {"": outcome.attempted}
        if outcome.kind != "natural":
            masks["_success"] = succeeded(outcome)
        figures = {}
        for norm in LP_NORMS:
            for suffix, mask in masks.items():
                sizes = getattr(outcome, norm)[mask]
                if len(sizes):
                    for name, reduce in (("mean", np.mean), ("median", np.median), ("max", np.max)):
                        figures[f"{norm}_{name}{suffix}"] = Measure(float(reduce(sizes)), n=len(sizes))
        return figures
