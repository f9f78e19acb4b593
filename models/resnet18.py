"""ResNet-18, with or without weights from ImageNet."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robbench.core.contracts import Architecture, Backbone
from robbench.core.errors import RequestError
from robbench.core.registry import register_architecture
from robbench.models._backbone import is_small
from robbench.models._convolution import with_quick_convolutions

IMAGENET_WEIGHTS = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
"""torchvision's ``ResNet18_Weights.IMAGENET1K_V1``; the digits in the name begin the file's SHA-256."""


@register_architecture("resnet18")
@dataclass(frozen=True)
class ResNet18(Architecture):
    """ResNet-18 (He et al., 2016), with torchvision's stem or the 3 × 3 one that suits 32 × 32 images.

    Attributes:
        stem: ``torchvision``, a strided 7 × 7 convolution and pooling; ``3x3``, one convolution without stride; or
            ``auto``, which is ``3x3`` for images up to 64 × 64.
    """

    stem: Literal["torchvision", "3x3", "auto"] = "torchvision"

    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone of 512 features."""
        return _ResNet(self._stem(image_shape), image_shape[0])

    def pretrained(self, image_shape: tuple[int, int, int]) -> tuple[str | None, str]:
        """torchvision's ``IMAGENET1K_V1``, if they lie in torch's cache or their address answers."""
        if self._stem(image_shape) != "torchvision" or image_shape[0] != 3:
            return None, "weights from ImageNet fit torchvision's stem and three channels"
        file = _cached_weights()
        if not file.is_file():
            try:
                with urllib.request.urlopen(urllib.request.Request(IMAGENET_WEIGHTS, method="HEAD"), timeout=5):
                    pass
            except (OSError, ValueError):
                return None, (
                    f"weights from ImageNet cannot be had: no {file.name} in torch's cache, and "
                    f"{IMAGENET_WEIGHTS} does not answer"
                )
        return f"ImageNet (torchvision, {file.stem})", ""

    def pretrained_weights(self) -> Mapping[str, Tensor]:
        """From torch's cache, or downloaded to it.

        Raises:
            RequestError: If they cannot be downloaded, or the file is not the published one, which its name tells the
                hash of.
        """
        file = _cached_weights()
        prefix = file.stem.rpartition("-")[2]
        if not file.is_file():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(IMAGENET_WEIGHTS, str(file), hash_prefix=prefix, progress=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise RequestError(
                    f"weights from ImageNet cannot be downloaded from {IMAGENET_WEIGHTS} ({error}); run again when it "
                    f"answers, or put {file.name} into {file.parent}"
                ) from None
        if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(prefix):
            raise RequestError(f"{file} is not what torchvision published, or damaged; remove it and run again")
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return {f"network.{name}": value for name, value in weights.items() if not name.startswith("fc.")}

    def _stem(self, image_shape: tuple[int, int, int]) -> str:
        if self.stem == "auto":
            return "3x3" if is_small(image_shape) else "torchvision"
        return self.stem


def _cached_weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_WEIGHTS.rpartition("/")[2]


class _ResNet(Backbone):
    def __init__(self, stem: str, channels: int) -> None:
        from torchvision.models import resnet18

        super().__init__()
        network = resnet18(weights=None)
        if stem == "3x3":
            network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        elif channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.out_features = int(network.fc.in_features)
        network.fc = nn.Identity()
        self.network = with_quick_convolutions(network)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features
