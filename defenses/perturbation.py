"""Training on naturally perturbed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robbench.attacks.perturbation import Perturbation, Strengths
from robbench.core.contracts import Defense
from robbench.core.registry import register_defense
from robbench.core.training_step import Batch


@register_defense("perturbation")
@dataclass(frozen=True)
class PerturbationTraining(Strengths, Defense):
    """Train on images under color jitter, rotation and corrupted pixels, drawn anew in each epoch.

    Parameters are those of the attack of the same name.
    """

    by_sample: ClassVar[bool] = True

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on perturbed images, a scalar."""
        return batch.loss(Perturbation(**self.parameters()).apply(batch.images, batch.rng))
