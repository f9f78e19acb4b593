"""Training on images transformed by a learned policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robbench.core.registry import register_defense
from robbench.defenses._augmentation import ImageTransforms


@register_defense("autoaugment")
@dataclass(frozen=True)
class AutoAugmentTraining(ImageTransforms):
    """Training on images transformed by a learned policy (Cubuk et al., "AutoAugment", 2019), by torchvision.

    Attributes:
        policy: The data set that the policy was learned on.
    """

    policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"

    def transform(self) -> Callable[[Tensor], Tensor]:
        """The policy."""
        from torchvision.transforms import v2

        made: Callable[[Tensor], Tensor] = v2.AutoAugment(v2.AutoAugmentPolicy(self.policy))
        return made
