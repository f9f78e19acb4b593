"""The shared part of natural perturbations: they depend on the image alone."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@dataclass(frozen=True)
class RandomTransform(Attack):
    """A random change of images that no adversary chooses."""

    @abc.abstractmethod
    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Transformed images, floats in [0, 1] of the same shape ``(N, C, H, W)``, one draw per sample."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Transformed images, whatever the model and the labels."""
        return self.apply(images, rng)
