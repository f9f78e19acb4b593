"""Random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._projections import per_sample
from robbench.attacks._random_transform import RandomTransform
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams

Strength = Annotated[float, Field(ge=0)]
HueStrength = Annotated[float, Field(ge=0, le=0.5)]


def grayscale(images: Tensor) -> Tensor:
    """Luma of images, shape ``(N, 1, H, W)``: of RGB as ITU-R 601-2 weighs the channels, else the mean of all."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    return 0.2989 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    share = per_sample(factors.to(images.dtype), images)
    return (share * images + (1 - share) * other).clamp(0, 1)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Images ``(N, 3, H, W)`` mixed with black: factor 0 is black, 1 is the image; one factor per sample ``(N,)``."""
    return _blend(images, torch.zeros_like(images), factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Images mixed with their mean luma: factor 0 is flat gray, 1 is the image."""
    return _blend(images, grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Images mixed with their grayscale: factor 0 has no color, 1 is the image."""
    return _blend(images, grayscale(images), factors)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Images whose hue is turned by a share of the color wheel, from -0.5 to 0.5; by way of HSV (Smith, 1978).

    What is not RGB has no hue, and stays.
    """
    if images.shape[1] != 3:
        return images
    value, spread = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    divisor = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * per_sample(turns.to(images.dtype), hue)
    sectors = (hue[:, None] + torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]) % 6
    return value[:, None] - spread[:, None] * torch.minimum(sectors, 4 - sectors).clamp(0, 1)


_ADJUSTMENTS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def jitter(images: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Apply the four adjustments to each image, in an order of its own.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``; what is not RGB has no hue.
        amounts: Factors of brightness, contrast and saturation, and turns of hue, shape ``(N, 4)``. Those that change
            nothing (1, 1, 1, 0) leave the image as it is, to the last bit.
        order: For each image a permutation of 0 to 3, int64, shape ``(N, 4)``: what comes first, second and so on.
    """
    images = images.clone()
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], device=amounts.device)
    for position in range(len(_ADJUSTMENTS)):
        for number, adjust in enumerate(_ADJUSTMENTS):
            turn = (order[:, position] == number) & (amounts[:, number] != neutral[number])
            if bool(turn.any()):
                images[turn] = adjust(images[turn], amounts[turn, number])
    return images


@register_attack("color-jitter", norms=("none",), brief="Random color jitter")
@dataclass(frozen=True)
class ColorJitter(RandomTransform):
    """Random brightness, contrast, saturation and hue in random order, as torchvision's ``ColorJitter`` draws them.

    Costs no pass.

    Attributes:
        brightness: The factor is uniform in ``[max(0, 1 - brightness), 1 + brightness]``.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: The hue turns by a share of the color wheel that is uniform in ``[-hue, hue]``.
    """

    brightness: Strength = 0.1
    contrast: Strength = 0.1
    saturation: Strength = 0.1
    hue: HueStrength = 0.05

    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Images with other colors."""
        factors = [
            rng.uniform(name, (), max(0.0, 1 - strength), 1 + strength, dtype=images.dtype)
            for name, strength in (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("saturation", self.saturation),
            )
        ]
        turns = rng.uniform("hue", (), -self.hue, self.hue, dtype=images.dtype)
        return jitter(images, torch.stack([*factors, turns], dim=1), rng.subsets("order", 4, 4))
