"""Random noise: controls without any knowledge of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.attacks._projections import add, l2_direction
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("gaussian-noise", norms=("none", "l2"), brief="Gaussian noise")
@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Independent Gaussian noise in every value, clipped to [0, 1]; in L2, noise scaled to norm eps before clipping.

    Costs no pass.

    Attributes:
        std: Standard deviation of the noise in units of a [0, 1] pixel; in L2 eps takes its place.
    """

    std: Annotated[float, Field(ge=0)] = 0.05

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Noisy images."""
        noise = rng.normal("noise", tuple(images.shape[1:]), dtype=images.dtype)
        if threat.norm == "l2":
            return add(images, threat.radius * l2_direction(noise))
        return add(images, self.std * noise)


@register_attack("uniform-noise", norms=("linf",), brief="Uniform noise")
@dataclass(frozen=True)
class UniformNoise(Attack):
    """Independent noise in every value, uniform in [-eps, eps] or at either end, clipped to [0, 1].

    Random signs fool a linear model with margin m and weights w with probability about ``Φ(-m / (eps ‖w‖₂))``.
    Costs no pass.

    Attributes:
        signs: Whether every value moves by eps up or down, rather than by any amount up to eps.
    """

    signs: bool = False

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Noisy images."""
        shape, eps = tuple(images.shape[1:]), threat.radius
        if self.signs:
            return add(images, eps * rng.signs("signs", shape, dtype=images.dtype))
        return add(images, rng.uniform("noise", shape, -eps, eps, dtype=images.dtype))
