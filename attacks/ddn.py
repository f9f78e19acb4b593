"""Decoupled direction and norm: gradient steps on a sphere that shrinks while the model is fooled and else grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._losses import Gain, others
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, cosine, size_of
from robbench.attacks._projections import l2_direction, per_sample
from robbench.attacks._survivors import Survivors
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm

TEMPERATURE = 0.25
"""In mean absolute deviations of the scores; on small networks and linear models the best of 0.03 to 1."""


@register_attack("ddn", norms=("l2",))
@dataclass(frozen=True)
class DDN(MinimalNormAttack):
    """Decoupled direction and norm (Rony et al., "Decoupling direction and norm", CVPR 2019, algorithm 1).

    Each step moves the change along a normalized gradient by a length that falls along a cosine from 1 to 0.01, then
    scales it to a norm that is multiplied by ``1 - gamma`` after an image that fools the model and by ``1 + gamma``
    after one that does not, and clips to [0, 1]. Images are not rounded to 8 bits. The nearest image that fooled the
    model is returned, the image itself where none did. The gradient is that of cross-entropy at a temperature in
    proportion to the spread of the scores, which the paper leaves at 1: so confident scores are no defense.
    Costs ``steps + 2`` forward and ``steps`` backward passes.

    Attributes:
        steps: Steps.
        gamma: By how much of itself the norm changes in a step.
        start: The norm to begin with.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    start: Annotated[float, Field(gt=0)] = 1.0

    version: ClassVar[int] = 2

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Offer every iterate ``x_k = clip(x + eps_k * delta / ‖delta‖₂)``."""
        x = x_k = left.images
        eps_k = torch.full_like(left.labels, self.start, dtype=x.dtype)
        for k in range(self.steps):
            g, _, fooled = left.gradient(x_k, _log_odds(left))
            nearest.offer(left, x_k, size_of(x_k - x, "l2"), fooled)
            eps_k = eps_k * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            delta = x_k - x + cosine(k, self.steps) * l2_direction(g)
            x_k = (x + per_sample(eps_k, x) * l2_direction(delta)).clamp(0, 1)
        nearest.offer(left, x_k, size_of(x_k - x, "l2"), left.fools(x_k))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and forward passes on the images and on the last iterate."""
        return self.steps + 2, self.steps


def _log_odds(left: Survivors) -> Gain:
    """Log-odds of a wrong prediction, or of the target, at a temperature that follows the scale of the scores.

    Cross-entropy is the softplus of these, so that both have the same direction; but they do not saturate.
    """
    sign = 1 if left.targeted else -1

    def values(scores: Tensor) -> Tensor:
        spread = (scores.detach() - scores.detach().mean(dim=1, keepdim=True)).abs().mean(dim=1, keepdim=True)
        temperature = TEMPERATURE * torch.where(spread > 0, spread, 1.0)
        rest = (others(scores, left.labels) / temperature).logsumexp(dim=1, keepdim=True) * temperature
        return sign * (scores.gather(1, left.labels[:, None]) - rest)[:, 0]

    return values
