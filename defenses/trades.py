"""Training for accuracy and for scores that stay the same around an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch, Mode
from robbench.defenses._adversarial_training import IteratedTraining, divergences


@register_defense("trades", brief="TRADES: accuracy, and scores that stay the same around an image")
@dataclass(frozen=True)
class TradesTraining(IteratedTraining):
    """TRADES (Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019).

    Equation 5: ``L(f(x)) + beta * KL(f(x) ‖ f(x'))``, where x' raises the divergence. A balancer's class weights weigh
    both terms.

    Attributes:
        beta: Weight of the divergence.
    """

    mode: Mode = "eval"
    beta: Annotated[float, Field(gt=0)] = 6.0

    by_sample: ClassVar[bool] = True

    @property
    def uses_scores(self) -> bool:
        """It does."""
        return True

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the steps, of the scores that they lead away from, and of the clean images."""
        return self.steps + 2, self.steps + 1

    def examples(self, batch: Batch) -> Tensor:
        """The images whose scores diverge most from those of the clean ones."""
        with torch.no_grad():
            clean = batch.attack_scores(batch.images, self.mode)
        return self.ascended(
            batch,
            self.nudged(batch),
            lambda changed: divergences(batch.attack_scores(changed, self.mode), clean).sum(),
        )

    def loss_on(self, batch: Batch, examples: Tensor, apart: bool = False) -> Tensor:
        """The loss, given examples.

        Args:
            batch: The step.
            examples: Images under attack.
            apart: Whether to ask as an attack does, so that nothing is left behind.
        """
        scores = batch.attack_scores if apart else batch.scores
        clean = scores(batch.images)
        return batch.score_loss(clean) + self.beta * batch.mean(divergences(scores(examples), clean))

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on clean images and examples, a scalar."""
        return self.loss_on(batch, self.examples(batch))
