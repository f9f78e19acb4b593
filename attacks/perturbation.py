"""The natural perturbation of a camera picture: color jitter, rotation and corrupted pixels in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.attacks._random_transform import RandomTransform
from robbench.attacks.color_jitter import ColorJitter, HueStrength, Strength
from robbench.attacks.pixel_corruption import PixelCorruption
from robbench.attacks.rotation import Rotation
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams


@dataclass(frozen=True)
class Strengths:
    """How strong the three parts are; slight by default, so that no human is fooled.

    Attributes:
        brightness, contrast, saturation, hue: As in ``ColorJitter``.
        degrees: As in ``Rotation``.
        pixels, value: As in ``PixelCorruption``.
    """

    brightness: Strength = 0.1
    contrast: Strength = 0.1
    saturation: Strength = 0.1
    hue: HueStrength = 0.05
    degrees: Annotated[float, Field(ge=0, le=180)] = 5.0
    pixels: Annotated[int, Field(ge=0)] = 10
    value: Annotated[float, Field(ge=0, le=1)] = 1.0

    def parts(self) -> tuple[ColorJitter, Rotation, PixelCorruption]:
        """The three parts, first to last."""
        return (
            ColorJitter(self.brightness, self.contrast, self.saturation, self.hue),
            Rotation(self.degrees),
            PixelCorruption(self.pixels, self.value),
        )


@register_attack("perturbation", norms=("none",), brief="Jitter, rotation, pixel noise")
@dataclass(frozen=True)
class Perturbation(Strengths, RandomTransform):
    """Slight color jitter, then rotation up to 5°, then 10 pixels with one channel overwritten.

    Costs no pass. Parameters are those of the three parts.
    """

    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Perturbed images."""
        for position, part in enumerate(self.parts()):
            images = part.apply(images, rng.fork("part", position))
        return images
