"""Ways to look robust without being so, for the grid ``false-robustness.toml``.

What robbench itself offers, a quantizer without gradient and training on test images, is not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robbench import (
    Architecture,
    Attack,
    Backbone,
    Classifier,
    Defense,
    Streams,
    Threat,
    register_architecture,
    register_attack,
)
from robbench import register_defense as register


class _Around(Classifier):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.num_classes, self.training = model, model.num_classes, model.training

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(images)


class _Scaled(_Around):
    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = 1e6 * self.model(images)
        return scores


@register("scaled-scores")
@dataclass(frozen=True)
class ScaledScores(Defense):
    """Scores times a million: no boundary moves, and the gradient of cross-entropy is gone."""

    def wrap(self, model: Classifier) -> Classifier:
        return _Scaled(model)


class _HardVotes(_Around):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(self.model.predict(images), self.num_classes).to(images.dtype)


@register("hard-votes")
@dataclass(frozen=True)
class HardVotes(Defense):
    """Scores of zeros and a one, as of a single vote."""

    gradients: ClassVar[str] = "none"

    def wrap(self, model: Classifier) -> Classifier:
        return _HardVotes(model)


class _Collapsed(_Around):
    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        return torch.cat([scores[:, :1] + 1e3, scores[:, 1:]], dim=1)


@register("collapse")
@dataclass(frozen=True)
class Collapse(Defense):
    """The first class, whatever the image shows."""

    def wrap(self, model: Classifier) -> Classifier:
        return _Collapsed(model)


class _Noisy(_Around):
    """Draws other noise at every call, and does not average."""

    def __init__(self, model: Classifier, sigma: float) -> None:
        super().__init__(model)
        self.sigma, self.calls = sigma, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        draws = torch.Generator().manual_seed(self.calls)
        noise = torch.randn(images.shape, generator=draws, dtype=images.dtype).to(images.device)
        scores: Tensor = self.model(images + self.sigma * noise)
        return scores


@register("unsteady")
@dataclass(frozen=True)
class Unsteady(Defense):
    """Fresh noise on the image at every call, none of it averaged, in training as well."""

    sigma: float = 0.2

    def wrap(self, model: Classifier) -> Classifier:
        return _Noisy(model, self.sigma)


class _Winners(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).reshape(features.shape)


class _WinnersBackbone(Backbone):
    def __init__(self, image_shape: tuple[int, int, int], share: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for out in (16, 32, 64):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), _Winners(share)]
            channels = out
        size = channels * ((image_shape[1] + 7) // 8) * ((image_shape[2] + 7) // 8)
        self.out_features = 128
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 128), _Winners(share))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


@register_architecture("k-winners")
@dataclass(frozen=True)
class KWinners(Architecture):
    """The compact CNN with k-winners-take-all in place of ReLU (Xiao et al., 2020): its gradient is shattered.

    Attributes:
        share: Of a layer's features that pass.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.1

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        return _WinnersBackbone(image_shape, self.share)


@register_attack("leaves-the-ball", norms=("linf",), brief="Steps of twice the allowed size")
@dataclass(frozen=True)
class LeavesTheBall(Attack):
    """Changes every pixel by twice what is allowed."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return (images + 2 * threat.radius * rng.signs("far", images.shape[1:], images.dtype)).clamp(0, 1)


@register_attack("changes-labels", norms=("linf",), brief="Makes every label the prediction")
@dataclass(frozen=True)
class ChangesLabels(Attack):
    """Writes the model's predictions on what it returns over the labels, so that nothing is ever wrong."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        changed = (images + threat.radius * rng.signs("near", images.shape[1:], images.dtype)).clamp(0, 1)
        labels.copy_(model.predict(changed))
        return changed
