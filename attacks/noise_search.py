"""Many random draws: the control that every informed attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._projections import per_sample, project, uniform_in_ball
from robbench.attacks._survivors import Survivors
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

_AT_ONCE = 8
"""Draws per call of the model. A constant, so that what a sample costs does not depend on the batch that it is in."""


@register_attack("noise-search", norms=("linf", "l2", "l1"), brief="Random draws from the ball")
@dataclass(frozen=True)
class NoiseSearch(Attack):
    """Many random changes, independent of each other and of the model; the first that fools it is kept.

    Draws alternate between the surface of the ball (in Linf its corners) and its inside, uniform in both. On a linear
    model with margin m and weights w one corner succeeds with probability about ``Φ(-m / (eps ‖w‖₂))``, so that this is
    a control: a model that it fools where a gradient attack does not has hidden its gradients.
    Costs at most ``draws`` forward passes.

    Attributes:
        draws: Changes that are tried. A sample that is fooled leaves the batch.
    """

    draws: Annotated[int, Field(ge=1)] = 10_000

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The first draws that fool the model, or the last ones."""
        found, left = images.clone(), Survivors.of(model, images, labels, threat, rng)
        for first in range(0, self.draws, _AT_ONCE):
            if not left:
                break
            count = min(_AT_ONCE, self.draws - first)
            tried = _draws(left.images, left.rng, first, threat)[:count]
            with torch.no_grad():
                fooled = left.fooled(left.model.predict(tried.flatten(0, 1)).reshape(tried.shape[:2]))
            hit = fooled.any(dim=0)
            chosen = torch.where(hit, fooled.int().argmax(dim=0), count - 1)
            found[left.index] = tried[chosen, torch.arange(len(left), device=images.device)]
            left = left[~hit]
        return found

    def passes(self, num_classes: int) -> tuple[int, int]:
        """A forward pass per draw."""
        return self.draws, 0


def _draws(images: Tensor, rng: Streams, first: int, threat: Threat) -> Tensor:
    """The next few draws, shape ``(draws, N, C, H, W)``: on the surface and inside in turn."""
    norm, eps = threat.norm, threat.radius
    if norm == "linf":
        # All at once and without exact rounding, which the tolerance of the ball allows: this is most of the work.
        shape = (_AT_ONCE // 2, *images.shape[1:])
        corners = eps * rng.signs(("corners", first), shape, images.dtype)
        inside = rng.uniform(("inside", first), shape, -eps, eps, images.dtype)
        changes = torch.stack([corners, inside], dim=2).flatten(1, 2)
        return (images[:, None] + changes).clamp(0, 1).transpose(0, 1)
    tried = []
    for draw in range(first, first + _AT_ONCE):
        change = uniform_in_ball(rng, ("noise", draw), images, norm, eps)
        tried.append(project(images, change if draw % 2 else _to_surface(change, norm, eps), norm, eps))
    return torch.stack(tried)


def _to_surface(change: Tensor, norm: Norm, eps: float) -> Tensor:
    sizes = torch.linalg.vector_norm(change.flatten(1), 2 if norm == "l2" else 1, dim=1)
    return change * per_sample(torch.where(sizes > 0, eps / sizes, 0), change)
