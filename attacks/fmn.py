"""The fast minimum-norm attack: projected gradient steps in a ball whose radius follows the boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import score_gradient, succeeded
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, cosine, dual_size, lead, size_of
from robbench.attacks._projections import _project_l1, l2_direction, per_sample
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm, Threat


@register_attack("fmn", norms=("linf", "l2", "l1", "l0"))
@dataclass(frozen=True)
class FMN(MinimalNormAttack):
    """Fast minimum-norm attack (Pintor et al., "Fast minimum-norm adversarial attacks", NeurIPS 2021, algorithm 1).

    Each step moves the change against the normalized gradient of the margin, projects it onto a ball and clips to
    [0, 1]. Until a sample is fooled for the first time, the radius is the distance to the boundary of the linearized
    model or the last radius, whichever is larger, and ``gamma`` further, so that the boundary is crossed rather than
    met and the box cannot hold the radius down; afterwards it shrinks by ``gamma`` where the image fools the model and
    grows by as much where it does not. In L0 the radius is a number of values, at
    least one more or less than the last, and begins at one. Step size and gamma fall along a cosine to a hundredth.
    The nearest image that fooled the model is returned, the image itself where none did.
    Costs ``steps + 2`` forward and ``steps`` backward passes.

    Attributes:
        steps: Steps.
        alpha: L2 norm of the first step.
        gamma: By how much of itself the radius changes in the first step.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    alpha: Annotated[float, Field(gt=0)] = 1.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def search(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The nearest image of the trajectory that fools the model."""
        norm, targeted = threat.norm, threat.targeted
        nearest, every = Nearest.to(images), torch.arange(len(images), device=images.device)
        current, radius = images, torch.zeros_like(nearest.sizes)
        for step in range(self.steps):
            gradient, leads, decisions = score_gradient(model, current, lead(labels, targeted))
            fooled, sizes = succeeded(decisions, labels, targeted), size_of(current - images, norm)
            nearest.offer(every, current, sizes, fooled)
            decay = cosine(step, self.steps)
            gamma = self.gamma * decay
            if norm == "l0":
                fewer = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
                more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
            else:
                # The decision may stand although the scores say otherwise: then further, hence the absolute value.
                reach = sizes + leads.double().abs() / dual_size(gradient, norm)
                fewer = radius * (1 - gamma)
                more = (1 + gamma) * torch.where(nearest.sizes.isinf(), torch.maximum(reach, radius), radius)
            # No change within [0, 1] has a norm above the number of values.
            radius = (
                torch.where(fooled, torch.minimum(fewer, nearest.sizes), more).nan_to_num(0).clamp(0, images[0].numel())
            )
            change = current - images - self.alpha * decay * l2_direction(gradient)
            current = (images + _shrink(change, norm, radius)).clamp(0, 1)
        with torch.no_grad():
            fooled = succeeded(model.predict(current), labels, targeted)
        nearest.offer(every, current, size_of(current - images, norm), fooled)
        return nearest.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and forward passes on the images and on the last iterate."""
        return self.steps + 2, self.steps


def _shrink(change: Tensor, norm: Norm, radius: Tensor) -> Tensor:
    """Euclidean projection of each sample's change onto the ball of its own radius, shape ``(N,)``."""
    limit = per_sample(radius, change).to(change.dtype)
    if norm == "linf":
        return change.clamp(-limit, limit)
    if norm == "l2":
        return torch.minimum(per_sample(size_of(change, "l2"), change).to(change.dtype), limit) * l2_direction(change)
    if norm == "l1":
        unit = (change / limit.clamp(min=torch.finfo(change.dtype).tiny)).flatten(1)
        return limit * _project_l1(unit, 1.0).reshape(change.shape)
    order = change.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(order.shape[1], device=change.device) < radius[:, None]
    return change * torch.zeros_like(kept).scatter(1, order, kept).reshape(change.shape)
