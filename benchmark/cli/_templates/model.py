"""The network my-model: a class and a factory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MyModel(nn.Module):
    """Scores of images in [0, 1]; normalization lives inside.

    Args:
        channels: Channels of an image.
        classes: Classes K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        # Placeholders: the values that the weights were trained with.
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.25))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, K)`` of images ``(N, C, H, W)``."""
        scores: Tensor = self.layers((images - self.mean) / self.std)
        return scores


def make(channels: int = 3, classes: int = 10) -> nn.Module:
    """The network without its weights, which ``--weights`` names."""
    return MyModel(channels, classes)
