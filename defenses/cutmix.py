"""Training on images with a part of another image in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robbench.core.registry import register_defense
from robbench.defenses._augmentation import Mixing

if TYPE_CHECKING:
    from torchvision.transforms import v2


@register_defense("cutmix")
@dataclass(frozen=True)
class CutMixTraining(Mixing):
    """Training on images with a rectangle of another image (Yun et al., "CutMix", 2019), by torchvision."""

    def mixer(self, classes: int) -> v2.CutMix:
        """Pastes rectangles; labels are mixed by area."""
        from torchvision.transforms import v2

        return v2.CutMix(alpha=self.alpha, num_classes=classes)
