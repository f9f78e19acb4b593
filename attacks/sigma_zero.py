"""σ-zero: gradient steps on a smooth count of changed values, small changes set back to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, cosine, lead, size_of
from robbench.attacks._projections import l2_direction, per_sample
from robbench.attacks._survivors import Survivors
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@register_attack("sigma-zero", norms=("l0",), brief="σ-zero, few changed values")
@dataclass(frozen=True)
class SigmaZero(MinimalNormAttack):
    """σ-zero (Cinà et al., "σ-zero: Gradient-based optimization of ℓ0-norm adversarial examples", ICLR 2025).

    Minimizes ``max(lead, 0) + mean(δ² / (δ² + sigma))`` over the change δ (algorithm 1): the second
    term is a smooth share of changed values. Each gradient is scaled to an Linf norm of 1 and followed by Adam, as in
    the authors' code, with a step size that falls along a cosine to a tenth; the image is clipped to [0, 1]. Then
    changes below a threshold tau are set to zero; tau rises by ``t`` times the step size after an image that fools the
    model, and falls by as much after one that does not.

    The lead is the margin of scores that the attacker has yet to overcome, in units of its slope at the iterate, which
    the paper leaves as it is: so no scale of the scores is a defense. It counts until the hard prediction is wrong. L0
    is the number of changed values, not of pixels. The image with the fewest changes that fooled the model is returned,
    the image itself where none did.
    Costs ``steps + 2`` forward and ``steps`` backward passes.

    Attributes:
        steps: Steps.
        lr: Step size eta_0 in the first step.
        sigma: How smooth the count is: a change of its square root counts by half.
        tau: The threshold to begin with, in units of a [0, 1] pixel.
        t: By how much of the step size the threshold moves.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1.0
    sigma: Annotated[float, Field(gt=0)] = 1e-3
    tau: Annotated[float, Field(ge=0, le=1)] = 0.3
    t: Annotated[float, Field(ge=0)] = 0.01

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Offer every iterate ``x + delta``."""
        x = x_k = left.images
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        tau = torch.full_like(left.labels, self.tau, dtype=x.dtype)
        for k in range(self.steps):
            g, _, fooled = left.gradient(x_k, lead(left))
            delta = x_k - x
            nearest.offer(left, x_k, size_of(delta, norm), fooled)

            slope = 2 * delta * self.sigma / (delta**2 + self.sigma) ** 2 / x[0].numel()
            slope = slope + torch.where(per_sample(fooled, x), 0, l2_direction(g))
            largest = slope.abs().flatten(1).amax(dim=1)
            slope = slope / per_sample(torch.where(largest > 0, largest, 1), x)

            m = _BETA_1 * m + (1 - _BETA_1) * slope
            v = _BETA_2 * v + (1 - _BETA_2) * slope**2
            eta = self.lr * cosine(k, self.steps, last=0.1)
            step = eta * m / (1 - _BETA_1 ** (k + 1)) / ((v / (1 - _BETA_2 ** (k + 1))).sqrt() + _EPSILON)
            x_k = (x_k - step).clamp(0, 1)

            tau = (tau + self.t * torch.where(fooled, eta, -eta)).clamp(0, 1)
            x_k = torch.where((x_k - x).abs() < per_sample(tau, x), x, x_k)
        nearest.offer(left, x_k, size_of(x_k - x, norm), left.fools(x_k))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and forward passes on the images and on the last iterate."""
        return self.steps + 2, self.steps
