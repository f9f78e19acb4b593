"""A small convolutional network with strides in place of pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone


@register_architecture("compact-cnn")
@dataclass(frozen=True)
class CompactCNN(Architecture):
    """Three strided convolutions and a linear layer: 0.8 million multiply-adds at 32 × 32 and width 16.

    There is no batch normalization: training sets of a hundred images give it no statistics to speak of.

    Attributes:
        width: Channels of the first convolution; the others have two and four times as many.
    """

    width: Annotated[int, Field(ge=1)] = 16

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of 128 features."""
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for out in (self.width, 2 * self.width, 4 * self.width):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
            channels = out
        layers += [nn.Flatten(), nn.LazyLinear(128), nn.ReLU()]
        return SequentialBackbone(nn.Sequential(*layers), image_shape)
