"""Adding noise to images before the model sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.sample_rng import Streams
from robbench.defenses._random_front import RandomPreprocessing, gaussian_noise


@register_defense("noise")
@dataclass(frozen=True)
class Noise(RandomPreprocessing):
    """Additive noise at inference time alone; ``smoothing`` is trained under its noise.

    Attributes:
        std: Standard deviation in units of a [0, 1] pixel. Noisy images are not clipped.
        distribution: Of the noise; uniform noise reaches ``sqrt(3) * std`` both ways.
    """

    std: Annotated[float, Field(gt=0)] = 0.1
    distribution: Literal["gaussian", "uniform"] = "gaussian"

    def change(self, images: Tensor, rng: Streams, draw: int) -> Tensor:
        """The noisy images."""
        if self.distribution == "gaussian":
            return images + gaussian_noise(images, rng, draw, self.std)
        reach = math.sqrt(3) * self.std
        return images + rng.uniform(draw, tuple(images.shape[1:]), -reach, reach, dtype=images.dtype)
