"""TransformedTraining by torchvision inside the training step, drawn from the step's streams."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.contracts import Defense, as_stored, to_float
from robbench.core.global_rng import seeded
from robbench.core.training_step import Batch

if TYPE_CHECKING:
    from torchvision.transforms.v2 import CutMix, MixUp


@dataclass(frozen=True)
class Mixing(Defense):
    """Training on mixtures of two images and of their labels, one share for the whole batch.

    Attributes:
        alpha: Both parameters of the beta distribution of the shares.
    """

    alpha: Annotated[float, Field(gt=0)] = 1.0

    mixes_labels: ClassVar[bool] = True

    @abc.abstractmethod
    def mixer(self, classes: int) -> CutMix | MixUp:
        """What mixes a batch; it draws from torch's global generator."""

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on the mixtures, a scalar."""
        with seeded(int(batch.rng.bits("mixing", ())[0])):
            images, labels = self.mixer(batch.model.num_classes)(batch.images, batch.labels)
        return batch.loss(images, labels)


@dataclass(frozen=True)
class ImageTransforms(Defense):
    """Training on transformed images, rounded to 8 bits, each transformed by draws of its own."""

    by_sample: ClassVar[bool] = True

    @abc.abstractmethod
    def transform(self) -> Callable[[Tensor], Tensor]:
        """What transforms one image, uint8, shape ``(C, H, W)``; it draws from torch's global generator."""

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on the transformed images, a scalar."""
        transform, seeds = self.transform(), batch.rng.bits("augmentation", ()).tolist()
        levels = as_stored(batch.images, like=torch.zeros(0, dtype=torch.uint8))
        made = []
        with seeded(0):
            for image, seed in zip(levels, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                made.append(transform(image))
        return batch.loss(to_float(torch.stack(made), dtype=batch.images.dtype, device=batch.images.device))
