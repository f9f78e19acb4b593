"""Training on fast gradient examples with a random start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import SingleStepTraining


@register_defense("fgsm-rs")
@dataclass(frozen=True)
class FGSMRandomStart(SingleStepTraining):
    """Adversarial training by one step from a random start (Wong et al., "Fast is better than free", 2020).

    Algorithm 3: ``δ`` uniform in the ball, then ``Π(δ + rel_step * eps * sign(∇L(x + δ)))``.

    Attributes:
        rel_step: Size of the step as a share of eps.
    """

    rel_step: Annotated[float, Field(gt=0)] = 1.25

    def examples(self, batch: Batch) -> Tensor:
        """The images after the step, projected."""
        radius = self.radius(batch)
        started = self.moved(batch, self.drawn(batch, radius))
        return self.moved(batch, started - batch.images + self.steepest(batch, started, self.rel_step * radius))
