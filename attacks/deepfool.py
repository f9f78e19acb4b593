"""DeepFool: steps to the nearest boundary of the linearized model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import linearized_margins, steepest_step
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, dual_size, size_of
from robbench.attacks._projections import per_sample
from robbench.attacks._survivors import Survivors, staying
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm


@register_attack("deepfool", norms=("l2", "linf"))
@dataclass(frozen=True)
class DeepFool(MinimalNormAttack):
    """DeepFool (Moosavi-Dezfooli, Fawzi and Frossard, 2016, algorithm 2 and, for Linf, equation 11).

    Each step linearizes the score of every other class against that of the true one and goes to the nearest boundary.
    The sum of the steps, clipped to [0, 1] as it grows, is lengthened by the overshoot and tried on the model; samples
    leave the batch as soon as their hard prediction is wrong. On a linear model the first step is exact while the box
    is inactive. Where nothing was found the clean images are returned. Untargeted only.
    Costs a forward pass on the images, then, per step, two forward passes and a backward pass for each other class.

    Attributes:
        steps: Steps at the most.
        overshoot: By how much of itself the change is lengthened, so that it crosses the boundary.
        candidates: How many other classes to consider in each step, those with the highest scores; None for all.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    candidates: Annotated[int, Field(ge=1)] | None = None

    targetable: ClassVar[bool] = False

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Offer the images at which the hard prediction first changes."""
        x_i = left.images
        for _ in range(self.steps):
            x_i = (x_i + self._step(left, x_i, norm)).clamp(0, 1)
            tried = (left.images + (1 + self.overshoot) * (x_i - left.images)).clamp(0, 1)
            fooled = left.fools(tried)
            nearest.offer(left, tried, size_of(tried - left.images, norm), fooled)
            left, x_i = staying(~fooled, left, x_i)
            if not left:
                break

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Linearizing and trying in every step."""
        return 1 + 2 * self.steps, self.steps * min(num_classes - 1, self.candidates or num_classes)

    def _step(self, left: Survivors, images: Tensor, norm: Norm) -> Tensor:
        """The smallest change that brings the linearized score of another class up to that of the label."""
        step = torch.zeros_like(images)
        nearest = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
        for gap, slope in linearized_margins(left.model, images, left.labels, self.candidates):
            # A rival ahead in the scores that is not predicted is chased further: hence the absolute value.
            distance = gap.double().abs() / dual_size(slope, norm)
            nearer = per_sample(distance < nearest, images)
            length = per_sample(distance.clamp(max=torch.finfo(images.dtype).max).to(images.dtype), images)
            step = torch.where(nearer, length * steepest_step(images, slope, norm, 1.0), step)
            nearest = torch.minimum(nearest, distance)
        return step
