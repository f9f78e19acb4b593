"""Minimizing the total variation of images before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import DifferentiablePreprocessing


@register_defense("total-variation")
@dataclass(frozen=True)
class TotalVariation(DifferentiablePreprocessing):
    """Total variation minimization at inference time (Guo et al., "Countering adversarial images", 2018, section 4.3).

    Each channel x becomes the z that minimizes ``|z - x|² / 2 + weight * TV(z)`` (Rudin, Osher and Fatemi, 1992), found
    by steps of projected gradient descent on the dual (Chambolle, 2005), which are differentiated. Guo et al. drop
    pixels at random first; here all are kept.

    Attributes:
        weight: Weight of the total variation; 0 leaves images as they are.
        steps: Steps of the minimization.
    """

    weight: Annotated[float, Field(ge=0)] = 0.05
    steps: Annotated[int, Field(ge=1)] = 20

    def change(self, images: Tensor) -> Tensor:
        """The smoothed images."""
        if self.weight == 0:
            return images
        dual = torch.zeros(2, *images.shape, dtype=images.dtype, device=images.device)
        for _ in range(self.steps):
            # The largest eigenvalue of the dual problem is 8.
            dual = dual + _slopes(images + _divergence(dual)) / 8
            dual = dual / (torch.linalg.vector_norm(dual, dim=0) / self.weight).clamp_min(1)
        return images + _divergence(dual)


def _slopes(images: Tensor) -> Tensor:
    """Differences to the next pixel down and to the right, 0 at the edge, shape ``(2, N, C, H, W)``."""
    down = torch.diff(images, dim=2, append=images[:, :, -1:])
    return torch.stack([down, torch.diff(images, dim=3, append=images[..., -1:])])


def _divergence(dual: Tensor) -> Tensor:
    """The negative adjoint of ``_slopes`` on values that are 0 at the edge, shape ``(N, C, H, W)``."""
    down, right = dual
    return torch.diff(down, dim=2, prepend=torch.zeros_like(down[:, :, :1])) + torch.diff(
        right, dim=3, prepend=torch.zeros_like(right[..., :1])
    )
