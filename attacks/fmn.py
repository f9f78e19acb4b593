"""The fast minimum-norm attack: projected gradient steps in a ball whose radius follows the boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, cosine, dual_size, lead, size_of
from robbench.attacks._projections import l2_direction, per_sample, project_l1
from robbench.attacks._survivors import Survivors
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm


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

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Offer every iterate ``x + delta``, delta projected onto the ball of radius eps_k."""
        x = x_k = left.images
        eps_k = torch.zeros_like(nearest.sizes[left.index])
        for k in range(self.steps):
            g, leads, fooled = left.gradient(x_k, lead(left))
            sizes, decay = size_of(x_k - x, norm), cosine(k, self.steps)
            nearest.offer(left, x_k, sizes, fooled)
            best, gamma = nearest.sizes[left.index], self.gamma * decay
            if norm == "l0":
                fewer = torch.minimum(eps_k - 1, (eps_k * (1 - gamma)).floor())
                more = torch.maximum(eps_k + 1, (eps_k * (1 + gamma)).floor())
            else:
                # The prediction may stand although the scores say otherwise: then further, hence the absolute value.
                reach = sizes + leads.double().abs() / dual_size(g, norm)
                fewer = eps_k * (1 - gamma)
                more = (1 + gamma) * torch.where(best.isinf(), torch.maximum(reach, eps_k), eps_k)
            # No change within [0, 1] has a norm above the number of values.
            eps_k = torch.where(fooled, torch.minimum(fewer, best), more).nan_to_num(0).clamp(0, x[0].numel())
            delta = x_k - x - self.alpha * decay * l2_direction(g)
            x_k = (x + _shrink(delta, norm, eps_k)).clamp(0, 1)
        nearest.offer(left, x_k, size_of(x_k - x, norm), left.fools(x_k))

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
        return limit * project_l1(unit, 1.0).reshape(change.shape)
    order = change.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    kept = torch.arange(order.shape[1], device=change.device) < radius[:, None]
    return change * torch.zeros_like(kept).scatter(1, order, kept).reshape(change.shape)
