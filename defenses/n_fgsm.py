"""Training on fast gradient examples of noisy images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import SingleStepTraining


@register_defense("n-fgsm")
@dataclass(frozen=True)
class NoisyFGSM(SingleStepTraining):
    """Adversarial training by one step from strong noise (de Jorge et al., "Make some noise", 2022).

    Algorithm 1: ``η`` uniform in the ball of radius ``noise * eps``, then ``x + η + rel_step * eps * sign(∇L(x + η))``,
    which is clipped to [0, 1] but not projected onto the ball.

    Attributes:
        noise: Radius of the noise as a share of eps.
        rel_step: Size of the step as a share of eps.
    """

    noise: Annotated[float, Field(gt=0)] = 2.0
    rel_step: Annotated[float, Field(gt=0)] = 1.0

    def examples(self, batch: Batch) -> Tensor:
        """The noisy images after the step."""
        radius = self.radius(batch)
        noisy = (batch.images + self.drawn(batch, self.noise * radius)).clamp(0, 1)
        return (noisy + self.steepest(batch, noisy, self.rel_step * radius)).clamp(0, 1)
