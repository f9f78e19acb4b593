"""Random rotations about the center."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.attacks._random_transform import RandomTransform
from robbench.attacks._warp import centered, turned
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams

Interpolation = Literal["bilinear", "nearest"]


def rotate(images: Tensor, angles: Tensor, interpolation: Interpolation = "bilinear", fill: float = 0.0) -> Tensor:
    """Images turned counter-clockwise about their centers; agrees with torchvision's ``rotate`` with that fill.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``.
        angles: Degrees, one per sample, shape ``(N,)``.
        interpolation: Between pixels.
        fill: What is seen where the image does not reach.
    """
    height, width = images.shape[-2:]
    down, across = turned(*centered(images), angles)
    grid = torch.stack([across / (0.5 * width), down / (0.5 * height)], dim=-1)
    inside = torch.ones_like(images[:, :1])
    sampled = functional.grid_sample(torch.cat([images, inside], dim=1), grid, interpolation, align_corners=False)
    inside = sampled[:, -1:]
    return (sampled[:, :-1] * inside + (1 - inside) * fill).clamp(0, 1)


@register_attack("rotation", norms=("none",))
@dataclass(frozen=True)
class Rotation(RandomTransform):
    """Rotation by a random angle.

    Costs no pass.

    Attributes:
        degrees: The angle is uniform in ``[-degrees, degrees]``.
        interpolation: Between pixels.
        fill: What is seen where the image does not reach, in units of a [0, 1] pixel.
    """

    degrees: Annotated[float, Field(ge=0, le=180)] = 5.0
    interpolation: Interpolation = "bilinear"
    fill: Annotated[float, Field(ge=0, le=1)] = 0.0

    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Turned images."""
        if self.degrees == 0:
            return images.clone()
        angles = rng.uniform("angle", (), -self.degrees, self.degrees, dtype=torch.float64)
        return rotate(images, angles, self.interpolation, self.fill)
