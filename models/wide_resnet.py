"""Wide residual networks of any depth and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError
from robbench.core.registry import register_architecture
from robbench.models._preactivation import PreActivationNetwork


@register_architecture("wide-resnet")
@dataclass(frozen=True)
class WideResNet(Architecture):
    """WRN-depth-factor (Zagoruyko and Komodakis, 2016): 36.5 million parameters at 28 and 10, 46.2 at 34 and 10.

    Made for images of about 32 × 32: it halves them twice.

    Attributes:
        depth: Layers with weights, 6n + 4 for n blocks in each of the three groups.
        widen_factor: Channels of the groups in units of 16, 32 and 64.
        dropout: Share of activations that training leaves out inside of the blocks.
    """

    depth: int = 28
    widen_factor: Annotated[int, Field(ge=1)] = 10
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        """Check the depth too.

        Raises:
            RequestError: If no number of blocks has that many layers.
        """
        super().__post_init__()
        nearest = 6 * max(1, round((self.depth - 4) / 6)) + 4
        if self.depth != nearest:
            raise RequestError(f"depth = {self.depth}: a wide ResNet has 6n + 4 layers; the nearest depth is {nearest}")

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of 64 · ``widen_factor`` features."""
        stem = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        widths = [self.widen_factor * width for width in (16, 32, 64)]
        network = PreActivationNetwork(stem, 16, widths, (self.depth - 4) // 6, self.dropout)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return network
