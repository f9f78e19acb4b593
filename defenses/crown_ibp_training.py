"""Training towards certificates by linear bounds on top of interval bounds."""

from __future__ import annotations

from dataclasses import dataclass

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._bound_training import BoundTraining


@register_defense("crown-ibp-training", brief="Training on linear bounds of the margins on top of interval bounds")
@dataclass(frozen=True)
class CrownIntervalBoundTraining(BoundTraining):
    """CROWN-IBP (Zhang et al., "Towards stable and efficient training of verifiably robust neural networks", 2020).

    Intervals bound what enters nonlinear layers; from the margins one linear bound goes back to the images (section 3).
    The share of margins by linear bounds, beta, falls from 1 to 0 as eps grows. Linear bounds are replaced by interval
    bounds where those are larger. For K classes they count as K further forward and backward passes.
    """

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of interval bounds, and one of each for every class."""
        return 3 + num_classes, 2 + num_classes

    def linear_share(self, batch: Batch) -> float:
        """Beta at this step."""
        return 1 - self.grown(batch.progress)
