"""The small convolutional networks that certificates of robustness are published on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone

_Size: TypeAlias = Annotated[int, Field(ge=1)]
_Padding: TypeAlias = Annotated[int, Field(ge=0)]


@register_architecture(
    "cnn-a",
    brief="two convolutions and a linear layer: Wong and Kolter (2018), small",
    convolutions=((16, 4, 2, 1), (32, 4, 2, 1)),
    linear=(100,),
)
@register_architecture(
    "wong-large",
    brief="four convolutions and two linear layers: Wong et al. (2018), large",
    convolutions=((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)),
    linear=(512, 512),
)
@register_architecture(
    "ibp-small",
    brief="two convolutions and a linear layer: Gowal et al. (2018), small",
    convolutions=((16, 4, 2, 0), (32, 4, 1, 0)),
    linear=(100,),
)
@register_architecture(
    "ibp-medium",
    brief="four convolutions and two linear layers: Gowal et al. (2018), medium",
    convolutions=((32, 3, 1, 0), (32, 4, 2, 0), (64, 3, 1, 0), (64, 4, 2, 0)),
    linear=(512, 512),
)
@register_architecture(
    "ibp-large",
    brief="five convolutions and a linear layer: Gowal et al. (2018), large",
    convolutions=((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1)),
    linear=(512,),
)
@dataclass(frozen=True)
class CertificationCNN(Architecture):
    """Convolutions, then linear layers, each with ReLU: nothing that linear bounds do not pass.

    ``cnn-a`` is the small network of Wong and Kolter (2018), called CNN-A by Dathathri et al. (2020) and by
    α,β-CROWN; ``wong-large`` is the large one of Wong et al. (2018). The others are those of Gowal et al. (2018), whose
    large one pads its strided convolution on one side alone, here on both.

    Attributes:
        convolutions: Channels, kernel, stride and padding of each.
        linear: Outputs of each linear layer before the head.
    """

    convolutions: tuple[tuple[_Size, _Size, _Size, _Padding], ...]
    linear: tuple[_Size, ...]

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Unpadded convolutions leave nothing of smaller images."""
        least = 1
        for _, kernel, stride, padding in reversed(self.convolutions):
            least = max(1, (least - 1) * stride + kernel - 2 * padding)
        return None if min(image_shape[1:]) >= least else f"it needs images of at least {least} × {least}"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of as many features as the last linear layer has outputs."""
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for out, kernel, stride, padding in self.convolutions:
            layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            channels = out
        layers.append(nn.Flatten())
        for out in self.linear:
            layers += [nn.LazyLinear(out), nn.ReLU()]
        return SequentialBackbone(nn.Sequential(*layers), image_shape)
