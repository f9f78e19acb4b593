"""The networks of timm by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from robbench.core.component import AskedAs
from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.extras import require
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone, misfit


@register_architecture("timm", brief="A network of timm by its name, trained from random weights")
@dataclass(frozen=True)
class TimmNetwork(Architecture):
    """A network of timm (Wightman, 2019) without its head, trained from random weights.

    Asked for as ``timm[name=resnet18]``. Networks of a fixed input size are made for that of the images.

    Attributes:
        network: What timm calls it.
    """

    network: Annotated[str, AskedAs("name")] = ""

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Whether timm has it, and it can be trained on such images, is tried."""
        return misfit(self, image_shape) if self.network else "name one, as in timm[name=resnet18]"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of what goes into the head.

        Raises:
            RequestError: If timm is not installed, or has no such network.
        """
        timm = require("timm", "timm", "the architecture timm")
        known = timm.list_models()
        if self.network not in known:
            raise RequestError(f'timm has no network "{self.network}"; {did_you_mean(self.network, known)}')
        published = timm.get_pretrained_cfg(self.network)
        fixed = published is not None and published.fixed_input_size
        size = {"img_size": image_shape[1:]} if fixed else {}
        network = timm.create_model(self.network, in_chans=image_shape[0], num_classes=0, **size)
        return SequentialBackbone(nn.Sequential(network, nn.Flatten()), image_shape)
