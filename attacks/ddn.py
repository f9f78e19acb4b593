"""Decoupled direction and norm: gradient steps on a sphere that shrinks while the model is fooled and else grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import cross_entropy_gain, score_gradient, succeeded
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, cosine, size_of
from robbench.attacks._projections import l2_direction, per_sample
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat


@register_attack("ddn", norms=("l2",))
@dataclass(frozen=True)
class DDN(MinimalNormAttack):
    """Decoupled direction and norm (Rony et al., "Decoupling direction and norm", CVPR 2019, algorithm 1).

    Each step moves the change along the normalized gradient of cross-entropy by a length that falls along a cosine from
    1 to 0.01, then scales it to a norm that is multiplied by ``1 - gamma`` after an image that fools the model and by
    ``1 + gamma`` after one that does not, and clips to [0, 1]. Images are not rounded to 8 bits. The nearest image that
    fooled the model is returned, the image itself where none did.
    Costs ``steps + 2`` forward and ``steps`` backward passes.

    Attributes:
        steps: Steps.
        gamma: By how much of itself the norm changes in a step.
        start: The norm to begin with.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    start: Annotated[float, Field(gt=0)] = 1.0

    margin_loss: ClassVar[bool] = False

    def search(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The nearest image of the trajectory that fools the model."""
        nearest, every = Nearest.to(images), torch.arange(len(images), device=images.device)
        gain = cross_entropy_gain(labels, threat.targeted)
        current = images
        radius = torch.full((len(images),), self.start, dtype=images.dtype, device=images.device)
        for step in range(self.steps):
            gradient, _, decisions = score_gradient(model, current, gain)
            fooled = succeeded(decisions, labels, threat.targeted)
            nearest.offer(every, current, size_of(current - images, "l2"), fooled)
            radius = radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            direction = l2_direction(current - images + cosine(step, self.steps) * l2_direction(gradient))
            current = (images + per_sample(radius, images) * direction).clamp(0, 1)
        with torch.no_grad():
            fooled = succeeded(model.predict(current), labels, threat.targeted)
        nearest.offer(every, current, size_of(current - images, "l2"), fooled)
        return nearest.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and forward passes on the images and on the last iterate."""
        return self.steps + 2, self.steps
