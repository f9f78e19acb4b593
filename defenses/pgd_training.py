"""Training on examples of projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import ExampleTraining, IteratedTraining


@register_defense("pgd-training")
@dataclass(frozen=True)
class PGDTraining(IteratedTraining, ExampleTraining):
    """Adversarial training with projected gradient descent (Madry et al., "Towards deep learning models", 2018).

    Attributes:
        random_start: Whether the attack starts uniformly inside the ball rather than at the image.
    """

    random_start: bool = True

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the steps, and of the clean images where they have a share."""
        added = self.steps + (1 if self.alpha else 0)
        return added, added

    def examples(self, batch: Batch) -> Tensor:
        """The images after the attack."""
        start = self.drawn(batch, self.radius(batch)) if self.random_start else torch.zeros_like(batch.images)
        return self.ascended(batch, start)
