"""The loop of PGD, BIM and MI-FGSM: steps along a gradient, each projected back onto the ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robbench.attacks._gradients import steepest_step
from robbench.attacks._projections import project
from robbench.attacks._survivors import Kept, Survivors, staying
from robbench.core.threat_model import Threat


def projected_ascent(
    left: Survivors,
    x_t: Tensor,
    threat: Threat,
    alpha: float,
    steps: int,
    stops: bool,
    kept: Kept,
    direction: Callable[[Survivors, Tensor], Tensor] = lambda left, g: g,
) -> tuple[Survivors, Tensor]:
    """Raise the cross-entropy: ``x_{t+1} = Π(x_t + alpha * s(d_t))`` for ``d_t = direction(∇ CE(x_t))``.

    Π projects onto the part of the ball within [0, 1]; s is the steepest ascent in its norm, such as the sign in Linf
    (Madry et al., "Towards deep learning models", 2018, section 2.1). Costs one pass of each kind per step.

    Args:
        left: The samples.
        x_t: Where they start, shape ``(M, C, H, W)``.
        threat: The ball.
        alpha: Length of a step.
        steps: Steps at most.
        stops: Whether a sample leaves at the first iterate that fools the model.
        kept: Takes every iterate but the last that fools the model; the last is for the caller to offer.
        direction: From gradients to what is followed, both of shape ``(M, C, H, W)``.

    Returns:
        The samples that have not left, and their last iterates.
    """
    for _ in range(steps):
        if not left:
            break
        g, _, fooled = left.gradient(x_t, left.gain("ce"))
        kept.offer_fooling(left, x_t, fooled)
        if stops:
            left, x_t, g = staying(~fooled, left, x_t, g)
        x = left.images
        step = steepest_step(x_t, direction(left, g), threat.norm, alpha)
        x_t = project(x, (x_t - x).add_(step), threat.norm, threat.radius)
    return left, x_t


def keep_last(left: Survivors, x_t: Tensor, kept: Kept, asked: Tensor) -> None:
    """Offer the last iterates; whether they fool the model is only asked for some, at a forward pass each.

    Where somebody wants to know where the attack ended, it is asked for all.
    """
    if left.lead is not None:
        asked = torch.ones_like(asked)
    fooled = torch.zeros_like(asked)
    fooled[asked] = left[asked].fools(x_t[asked])
    kept.offer(left, x_t, fooled)
