"""The classifiers of torchvision by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from robbench.core.component import AskedAs
from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import register_architecture
from robbench.models._backbone import SequentialBackbone, misfit

_CLASSES = 1000


@register_architecture("torchvision", brief="A classifier of torchvision by its name, trained from random weights")
@dataclass(frozen=True)
class TorchvisionNetwork(Architecture):
    """A classifier of torchvision without its head, trained from random weights.

    Asked for as ``torchvision[name=mobilenet_v2]``. The first convolution has as many channels as the images; networks
    of a fixed input size are made for that of the images.

    Attributes:
        network: What torchvision calls it.
    """

    network: Annotated[str, AskedAs("name")] = ""

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Whether torchvision has it, and it can be trained on such images, is tried."""
        return misfit(self, image_shape) if self.network else "name one, as in torchvision[name=mobilenet_v2]"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of what goes into the head.

        Raises:
            RequestError: If torchvision has no such classifier.
        """
        from torchvision import models

        known = models.list_models(module=models)
        if self.network not in known:
            raise RequestError(f'torchvision has no classifier "{self.network}"; {did_you_mean(self.network, known)}')
        given: dict[str, Any] = {}
        if self.network.startswith("vit_"):
            given = {"image_size": image_shape[1]}
        elif self.network.startswith("maxvit_"):
            given = {"input_size": image_shape[1:]}
        elif self.network in ("googlenet", "inception_v3"):  # without their heads on the way
            given = {"aux_logits": False, "init_weights": True}
        network = models.get_model(self.network, weights=None, num_classes=_CLASSES, **given)
        parts = dict(network.named_modules())
        *_, head = (name for name, part in parts.items() if _outputs(part) == _CLASSES)
        parent, _, child = head.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        first = next(part for part in parts.values() if isinstance(part, nn.Conv2d))
        if first.in_channels != image_shape[0]:
            first.in_channels = image_shape[0]
            first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, image_shape[0], *first.kernel_size))
            first.reset_parameters()
        return SequentialBackbone(nn.Sequential(network, nn.Flatten()), image_shape)


def _outputs(part: nn.Module) -> int | None:
    if isinstance(part, nn.Linear):
        return part.out_features
    return part.out_channels if isinstance(part, nn.Conv2d) else None
