"""Training towards certificates by interval bounds."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.core.registry import register_defense
from robbench.defenses._bound_training import BoundTraining


@register_defense("ibp-training", brief="Training on interval bounds of the margins, mixed with the clean loss")
@dataclass(frozen=True)
class IntervalBoundTraining(BoundTraining):
    """Interval bound propagation (Gowal et al., "On the effectiveness of interval bound propagation", 2018, eq. 12).

    The last linear layer is merged with the margins (section 3), so that its bounds are exact given those before it.
    """
