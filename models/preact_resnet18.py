"""PreAct-ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.registry import register_architecture
from robbench.models._backbone import is_small
from robbench.models._preactivation import PreActivationNetwork


@register_architecture("preact-resnet18")
@dataclass(frozen=True)
class PreActResNet18(Architecture):
    """PreAct-ResNet-18 (He et al., 2016b), which adversarial training on CIFAR-10 is usually shown on.

    11.2 million parameters. The stem is a 3 × 3 convolution; of images above 64 × 64 it is a strided 7 × 7 one with
    pooling.
    """

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of 512 features."""
        channels = image_shape[0]
        stem: nn.Module = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        if not is_small(image_shape):
            stem = nn.Sequential(
                nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)
            )
        return PreActivationNetwork(stem, 64, (64, 128, 256, 512), blocks=2)
