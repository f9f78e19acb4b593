"""Backbones: networks from normalized images to features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robbench.core.contracts import Backbone


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
