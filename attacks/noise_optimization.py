"""Noise that brings an image to a target class for a price on every unit of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import score_gradient
from robbench.attacks._losses import gain
from robbench.attacks._projections import per_sample
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("noise-optimization", norms=("l1",), brief="Targeted, L1-penalized noise")
@dataclass(frozen=True)
class NoiseOptimization(Attack):
    """Minimize ``CE(model(image + noise), target) + c * ‖noise‖₁`` over the noise alone, the network frozen.

    By proximal gradient descent (ISTA; Beck and Teboulle, 2009), for each sample by itself: the L1 term is handled by
    soft-thresholding, so that noise not worth its price is exactly zero, and [0, 1] by clipping afterwards, which is
    exact because term and box are both separable and zero noise is inside the box. A step that does not lower the
    objective as far as its quadratic model promises is not taken, and the next one is half as long; otherwise the next
    is longer by a half. So the objective never rises, and the last noise is the best one. The price is weighed against
    cross-entropy, so results depend on the scale of the scores.
    Costs ``steps + 1`` forward and backward passes.

    Attributes:
        c: Price of one unit of noise, in [0, 1] pixels; more of it means less visible noise and less success. Where
            pixels lie in [-1, 1], the price of the same noise is half of this.
        steps: Steps, those not taken included.
        lr: Length of the first step.
        start: Noise to start from: ``zero``; ``white``, which turns the image into a white picture; or ``gaussian``.
        std: Standard deviation of the Gaussian start.
    """

    c: Annotated[float, Field(ge=0)] = 0.02
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.1
    start: Literal["zero", "white", "gaussian"] = "zero"
    std: Annotated[float, Field(gt=0)] = 0.1

    targetable: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images with the optimized noise, whether or not they reach the target."""
        objective = gain("ce", labels, targeted=True)
        lengths = torch.full((len(images),), self.lr, dtype=images.dtype, device=images.device)
        noise = self._start(images, rng)
        gradient, gains, _ = score_gradient(model, images + noise, objective)
        for _ in range(self.steps):
            length = per_sample(lengths, images)
            # The gain is minus the loss, so descent on the loss adds its gradient.
            proposed = self._prox(noise + length * gradient, length, images)
            change = proposed - noise
            new_gradient, new_gains, _ = score_gradient(model, images + proposed, objective)
            promised = gains + (gradient * change - change**2 / (2 * length)).flatten(1).sum(dim=1)
            taken = new_gains >= promised
            keep = per_sample(taken, images)
            noise, gradient = torch.where(keep, proposed, noise), torch.where(keep, new_gradient, gradient)
            gains, lengths = torch.where(taken, new_gains, gains), lengths * torch.where(taken, 1.5, 0.5)
        return (images + noise).clamp(0, 1)

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Untargeted attacks and limits on the noise are not what this optimizes."""
        if not threat.targeted:
            return "noise optimization needs a target: its objective is the cross-entropy of the target class"
        if threat.eps is not None:
            return "noise optimization pays for its noise instead of keeping to an eps; give none"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind at the start and per step."""
        return self.steps + 1, self.steps + 1

    def _prox(self, noise: Tensor, length: Tensor, images: Tensor) -> Tensor:
        thresholded = noise.sign() * (noise.abs() - length * self.c).clamp(min=0)
        return torch.maximum(torch.minimum(thresholded, 1 - images), -images)

    def _start(self, images: Tensor, rng: Streams) -> Tensor:
        if self.start == "zero":
            return torch.zeros_like(images)
        if self.start == "white":
            return 1 - images
        drawn = self.std * rng.normal("start", tuple(images.shape[1:]), dtype=images.dtype)
        return torch.maximum(torch.minimum(drawn, 1 - images), -images)
