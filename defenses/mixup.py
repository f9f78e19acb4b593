"""Training on weighted means of two images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robbench.core.registry import register_defense
from robbench.defenses._augmentation import Mixing

if TYPE_CHECKING:
    from torchvision.transforms import v2


@register_defense("mixup")
@dataclass(frozen=True)
class MixUpTraining(Mixing):
    """Training on weighted means of two images (Zhang et al., "mixup", 2018), by torchvision."""

    def mixer(self, classes: int) -> v2.MixUp:
        """Takes means of images and of labels."""
        from torchvision.transforms import v2

        return v2.MixUp(alpha=self.alpha, num_classes=classes)
