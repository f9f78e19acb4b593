"""A small convolutional network of LeNet-5's form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone


@register_architecture("small-cnn")
@dataclass(frozen=True)
class SmallCNN(Architecture):
    """Two convolutions and three linear layers, the last of them the head (LeNet-5's form; LeCun et al., 1998)."""

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Two convolutions and poolings leave nothing of smaller images."""
        return None if min(image_shape[1:]) >= 16 else "it needs images of at least 16 × 16"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of 84 features for images of at least 16 × 16."""
        layers = nn.Sequential(
            nn.Conv2d(image_shape[0], 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        return SequentialBackbone(layers, image_shape)
