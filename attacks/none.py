"""No attack: the control that every attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("none", norms=("none",), brief="No change")
@dataclass(frozen=True)
class NoAttack(Attack):
    """Leave images as they are; costs nothing."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """A copy of the images."""
        return images.clone()
