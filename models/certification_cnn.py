"""The small convolutional networks that certificates of robustness are published on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone

_Sizes: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


@register_architecture(
    "cnn-a",
    brief="Two convolutions and a linear layer: Wong and Kolter (2018), small",
    channels=(16, 32),
    kernels=(4, 4),
    strides=(2, 2),
    paddings=(1, 1),
    linear=(100,),
)
@register_architecture(
    "wong-large",
    brief="Four convolutions and two linear layers: Wong et al. (2018), large",
    channels=(32, 32, 64, 64),
    kernels=(3, 4, 3, 4),
    strides=(1, 2, 1, 2),
    paddings=(1, 1, 1, 1),
    linear=(512, 512),
)
@register_architecture(
    "ibp-small",
    brief="Two convolutions and a linear layer: Gowal et al. (2018), small",
    channels=(16, 32),
    kernels=(4, 4),
    strides=(2, 1),
    paddings=(0, 0),
    linear=(100,),
)
@register_architecture(
    "ibp-medium",
    brief="Four convolutions and two linear layers: Gowal et al. (2018), medium",
    channels=(32, 32, 64, 64),
    kernels=(3, 4, 3, 4),
    strides=(1, 2, 1, 2),
    paddings=(0, 0, 0, 0),
    linear=(512, 512),
)
@register_architecture(
    "ibp-large",
    brief="Five convolutions and a linear layer: Gowal et al. (2018), large",
    channels=(64, 64, 128, 128, 128),
    kernels=(3, 3, 3, 3, 3),
    strides=(1, 1, 2, 1, 1),
    paddings=(1, 1, 1, 1, 1),
    linear=(512,),
)
@dataclass(frozen=True)
class CertificationCNN(Architecture):
    """Convolutions, then linear layers, each with ReLU: nothing that linear bounds do not pass.

    ``cnn-a`` is the small network of Wong and Kolter (2018), called CNN-A by Dathathri et al. (2020) and by
    α,β-CROWN; ``wong-large`` is the large one of Wong et al. (2018). The others are those of Gowal et al. (2018), whose
    large one pads its strided convolution on one side alone, here on both.

    Attributes:
        channels, kernels, strides, paddings: Of each convolution.
        linear: Outputs of each linear layer before the head.
    """

    channels: _Sizes
    kernels: _Sizes
    strides: _Sizes
    paddings: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    linear: _Sizes

    def __post_init__(self) -> None:
        """Check that the convolutions are told in full.

        Raises:
            RequestError: If there are not as many kernels, strides and paddings as channels.
        """
        super().__post_init__()
        for name in ("kernels", "strides", "paddings"):
            if len(getattr(self, name)) != len(self.channels):
                raise RequestError(f"{name} = {getattr(self, name)}: one each for channels = {self.channels}")

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Unpadded convolutions leave nothing of smaller images."""
        least = 1
        for kernel, stride, padding in reversed(self._windows):
            least = max(1, (least - 1) * stride + kernel - 2 * padding)
        return None if min(image_shape[1:]) >= least else f"it needs images of at least {least} × {least}"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of as many features as the last linear layer has outputs."""
        layers: list[nn.Module] = []
        inputs = (image_shape[0], *self.channels)
        for channels, out, window in zip(inputs, self.channels, self._windows, strict=False):
            layers += [nn.Conv2d(channels, out, *window), nn.ReLU()]
        layers.append(nn.Flatten())
        for out in self.linear:
            layers += [nn.LazyLinear(out), nn.ReLU()]
        return SequentialBackbone(nn.Sequential(*layers), image_shape)

    @property
    def _windows(self) -> list[tuple[int, int, int]]:
        return list(zip(self.kernels, self.strides, self.paddings, strict=True))
