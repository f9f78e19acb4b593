"""Backbones: networks from normalized images to features."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError, explain
from robbench.core.global_rng import seeded

_SMALL = 64


def is_small(image_shape: tuple[int, int, int]) -> bool:
    """Whether a network should see images at full resolution, rather than shrink them to a quarter in its stem.

    Args:
        image_shape: Shape of one image, ``(C, H, W)``.
    """
    return min(image_shape[1:]) <= _SMALL


@functools.lru_cache(maxsize=64)
def misfit(architecture: Architecture, image_shape: tuple[int, int, int]) -> str | None:
    """Why an architecture fails to train on images of a shape, which only trying tells; None if it does not.

    Args:
        architecture: It draws its weights, and is put through half a step of training.
        image_shape: Shape of one image, ``(C, H, W)``.
    """
    try:
        with seeded(0):
            backbone = architecture.build(image_shape).to(memory_format=torch.channels_last)  # as it is trained
            features = backbone(torch.rand(2, *image_shape))
            features.sum().backward()
    except Exception as error:
        return str(error) if isinstance(error, RequestError) else f"a step of training fails: {explain(error)}"
    wanted = (2, backbone.out_features)
    return None if features.shape == wanted else f"two images give {tuple(features.shape)}, not {wanted} features"


class SequentialBackbone(Backbone):
    """Layers one after the other, ending in a flat feature vector.

    Args:
        layers: The layers.
        image_shape: Shape of one image, ``(C, H, W)``, from which the number of features follows.
    """

    def __init__(self, layers: nn.Sequential, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = layers
        layers.eval()
        with torch.no_grad():
            self.out_features = int(layers(torch.zeros(1, *image_shape)).shape[1])
        layers.train()

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape ``(N, out_features)``."""
        features: Tensor = self.layers(images)
        return features
