"""The defense my-defense: training on noisy images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from robbench import Batch, Defense, register_defense
from torch import Tensor


@register_defense(
    "my-defense",
    brief="training on noisy images",
)
@dataclass(frozen=True)
class MyDefense(Defense):
    """Train on images with Gaussian noise.

    Override ``wrap`` for a defense at inference; ``Defense`` lists further hooks.

    Attributes:
        std: Standard deviation of the noise.
    """

    std: Annotated[float, Field(gt=0)] = 0.1

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss of one step, a scalar to descend on."""
        shape, dtype = batch.images.shape[1:], batch.images.dtype
        noise = batch.rng.normal("noise", shape, dtype)
        return batch.loss((batch.images + self.std * noise).clamp(0, 1))
