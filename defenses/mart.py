"""Training that minds misclassified images more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch, Mode
from robbench.defenses._adversarial_training import IteratedTraining, divergences


@register_defense("mart", brief="MART: adversarial training that minds misclassified images more")
@dataclass(frozen=True)
class MartTraining(IteratedTraining):
    """MART (Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", 2020).

    Equation 11: ``BCE(p(x'), y) + beta * KL(p(x) ‖ p(x')) * (1 - p_y(x))`` with the boosted cross-entropy
    ``-log p_y(x') - log(1 - max_{k≠y} p_k(x'))``. Of mixed labels, the expectation over the label. A balancer's class
    weights weigh every term.

    Attributes:
        beta: Weight of the divergence.
    """

    mode: Mode = "eval"
    beta: Annotated[float, Field(gt=0)] = 5.0

    by_sample: ClassVar[bool] = True

    @property
    def uses_scores(self) -> bool:
        """It does."""
        return True

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the steps, and of the clean images."""
        return self.steps + 1, self.steps + 1

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on clean images and examples, a scalar."""
        examples = self.ascended(batch, self.nudged(batch))
        clean, attacked = batch.scores(batch.images), batch.scores(examples)
        shares = batch.labels
        if not shares.is_floating_point():
            shares = functional.one_hot(shares, clean.shape[1]).to(clean.dtype)
        (first, second), (best, _) = (part.unbind(dim=1) for part in attacked.softmax(dim=1).topk(2, dim=1))
        own = torch.arange(clean.shape[1], device=best.device) == best[:, None]
        rivals = torch.where(own, second[:, None], first[:, None])
        # The authors' code has the same small number, which keeps the logarithm finite.
        margins = -(shares * torch.log(1.0001 - rivals)).sum(dim=1)
        missed = 1 - (shares * clean.softmax(dim=1)).sum(dim=1)
        return batch.score_loss(attacked) + batch.mean(margins + self.beta * missed * divergences(attacked, clean))
