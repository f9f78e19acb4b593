"""Residual networks whose blocks normalize before they convolve."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robbench.core.contracts import Backbone
from robbench.models._convolution import with_quick_convolutions


class PreActivationBlock(nn.Module):
    """Twice batch normalization, ReLU and a 3 × 3 convolution, added to the input (He et al., 2016b, figure 1b).

    Where the shape changes, a 1 × 1 convolution of the first activation takes the input's place.

    Args:
        channels: Of the input.
        out: Channels of the output.
        stride: Of the first convolution.
        dropout: Share of activations that training leaves out between the convolutions.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        changes = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else None

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape ``(N, out, H', W')``, of features of shape ``(N, channels, H, W)``."""
        active = F.relu(self.bn1(images))
        beside = images if self.shortcut is None else self.shortcut(active)
        changed: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return changed + beside


class PreActivationNetwork(Backbone):
    """Groups of pre-activation blocks; every group but the first halves the image.

    Args:
        stem: From images to features.
        channels: Of the stem's features.
        widths: Channels of each group.
        blocks: Blocks of each group.
        dropout: As in a block.
    """

    def __init__(
        self, stem: nn.Module, channels: int, widths: Sequence[int], blocks: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers = [stem]
        for group, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if group and not block else 1
                layers.append(PreActivationBlock(channels, width, stride, dropout))
                channels = width
        ending = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.out_features = channels
        self.layers = with_quick_convolutions(nn.Sequential(*layers, *ending))

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape ``(N, out_features)``."""
        features: Tensor = self.layers(images)
        return features
