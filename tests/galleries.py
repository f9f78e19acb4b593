"""Nearest-neighbor models whose embeddings can be chosen."""

from __future__ import annotations

from typing import Any

import torch
from closed_forms import numbers
from torch import Tensor, nn

from robbench.core.contracts import Backbone
from robbench.models._neighbors import NeighborClassifier
from robbench.models.angular import AngularClassifier


class Flat(Backbone):
    """The image as it is, so that embeddings can be chosen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.out_features = size

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def neighbors(
    gallery: Tensor, labels: Tensor, k: int = 5, tau: float = 0.1, classes: int | None = None, alpha: float = 40.0
) -> NeighborClassifier:
    """A classifier in float64 whose embedding is the normalized image."""
    size = gallery.shape[1]
    count = int(labels.max()) + 1 if classes is None else classes
    model = AngularClassifier(alpha, Flat(size), size, count, labels, k, tau).double().eval().requires_grad_(False)
    model.projection.weight.copy_(torch.eye(size))
    model.projection.bias.zero_()
    model.gallery.copy_(nn.functional.normalize(gallery, dim=1))
    return model


def clouds(per_class: int, classes: int, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around one center per class."""
    centers = numbers(seed, classes, size)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return centers[labels] + 0.8 * numbers(seed + 1, len(labels), size), labels


def similarities(model: NeighborClassifier, images: Tensor) -> Any:
    return (nn.functional.normalize(images, dim=1) @ model.gallery.T).numpy()
