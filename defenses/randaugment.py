"""Training on images under transforms drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.defenses._augmentation import ImageTransforms


@register_defense("randaugment")
@dataclass(frozen=True)
class RandAugmentTraining(ImageTransforms):
    """Training on images under transforms drawn at random (Cubuk et al., "RandAugment", 2020), by torchvision.

    Attributes:
        count: Transforms of each image.
        magnitude: Their strength, from 0 to 30.
    """

    count: Annotated[int, Field(ge=1)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9

    def transform(self) -> Callable[[Tensor], Tensor]:
        """The transforms."""
        from torchvision.transforms import v2

        made: Callable[[Tensor], Tensor] = v2.RandAugment(self.count, self.magnitude)
        return made
