"""Single pixels with one channel overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.attacks._random_transform import RandomTransform
from robbench.core.errors import RequestError
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams


def overwrite(images: Tensor, positions: Tensor, channels: Tensor, value: float) -> Tensor:
    """Images with some values replaced.

    Args:
        images: Shape ``(N, C, H, W)``.
        positions: Pixels, counted row by row, int64, shape ``(N, P)``.
        channels: The channel replaced in each of them, int64, shape ``(N, P)``.
        value: What it becomes.
    """
    area = images.shape[-2] * images.shape[-1]
    return images.flatten(1).scatter(1, channels * area + positions, value).reshape(images.shape)


@register_attack("pixel-corruption", norms=("none",), brief="Random pixels overwritten")
@dataclass(frozen=True)
class PixelCorruption(RandomTransform):
    """Random pixels, all different, in each of which one random channel is overwritten by a constant.

    Costs no pass.

    Attributes:
        pixels: How many pixels.
        value: The constant, in units of a [0, 1] pixel.
    """

    pixels: Annotated[int, Field(ge=0)] = 10
    value: Annotated[float, Field(ge=0, le=1)] = 1.0

    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Corrupted images.

        Raises:
            RequestError: If the images have fewer pixels.
        """
        channels, height, width = images.shape[1:]
        if self.pixels > height * width:
            raise RequestError(f"pixels = {self.pixels}, but images of {height}×{width} have {height * width}")
        positions = rng.subsets("positions", height * width, self.pixels)
        return overwrite(images, positions, rng.integers("channels", (self.pixels,), channels), self.value)
