"""Training on fast gradient examples that are made anew in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import ExampleTraining


@register_defense("fgm")
@dataclass(frozen=True)
class FGMTraining(ExampleTraining):
    """Adversarial training with the fast gradient method (Goodfellow et al., 2015, section 6).

    The loss is ``alpha * L(x) + (1 - alpha) * L(x + step)``; no gradient flows through the step.
    """

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.5

    version: ClassVar[int] = 2

    def examples(self, batch: Batch) -> Tensor:
        """The images after one step of size eps."""
        return self.moved(batch, self.steepest(batch, batch.images, self.radius(batch)))
