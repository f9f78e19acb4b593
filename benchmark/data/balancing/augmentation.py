"""Transformed copies of training images: added once, or made anew in every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from robbench.core.contracts import Balancer, Samples, as_stored, to_float
from robbench.core.registry import register_balancer
from robbench.core.sample_rng import Streams
from robbench.data.balancing._repeats import append, fresh_ids
from robbench.data.balancing.resampling import Sampler
from robbench.data.dataset import Dataset

_CHUNK = 1024


@dataclass(frozen=True)
class Transforming(Balancer):
    """A random transform that keeps an image's class; never upside down.

    Attributes:
        degrees: Largest rotation, either way.
        shift: Largest shift along each side, as a share of it.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast, around the mean gray of the image.
    """

    degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2

    def transform(self, images: Tensor, mirror: bool, rng: Streams) -> Tensor:
        """Each image rotated, shifted, mirrored or not, and changed in contrast and brightness.

        Args:
            images: Float in [0, 1], shape ``(N, C, H, W)``.
            mirror: Whether to mirror left and right, with probability one half.
            rng: One stream of random numbers per image.

        Returns:
            Images of the same shape and dtype, inside [0, 1].
        """
        angle, across, down, contrast, brightness = rng.uniform("transform", (5,), -1, 1, images.dtype).unbind(1)
        angle = angle * math.radians(self.degrees)
        flip = rng.signs("mirror", (), images.dtype) if mirror else torch.ones_like(angle)
        height, width = images.shape[-2:]
        # Coordinates run from -1 to 1 along each side, so that a side is 2 long and turning needs the sides' ratio.
        rows = [
            torch.stack([flip * angle.cos(), -flip * angle.sin() * height / width, 2 * self.shift * across], dim=1),
            torch.stack([angle.sin() * width / height, angle.cos(), 2 * self.shift * down], dim=1),
        ]
        grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
        gray = moved.mean(dim=(1, 2, 3), keepdim=True)
        contrasted = gray + (1 + self.contrast * contrast)[:, None, None, None] * (moved - gray)
        return (contrasted * (1 + self.brightness * brightness)[:, None, None, None]).clamp(0, 1)


@register_balancer("augmentation")
@dataclass(frozen=True)
class Augmentation(Transforming):
    """Offline augmentation: randomly transformed copies of each image are added, the same in all epochs.

    Attributes:
        copies: Copies of each image; the proportions of the classes stay.
    """

    copies: Annotated[int, Field(ge=1)] = 1

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """All images, and transformed copies behind them."""
        rng = Streams.of(fresh_ids(samples, self.copies * len(samples)), seed, "augmentation")
        images = samples.images.repeat(self.copies, 1, 1, 1)
        parts = [slice(start, start + _CHUNK) for start in range(0, len(images), _CHUNK)]
        moved = [self.transform(to_float(images[part]), dataset.mirror, rng[part]) for part in parts]
        made = [as_stored(part, images) for part in moved]
        return append(samples, torch.cat(made), samples.labels.repeat(self.copies)), ()


@register_balancer("augmentation-sampler")
@dataclass(frozen=True)
class AugmentationSampler(Augmentation):
    """Offline augmentation, then over- and undersampling to equal class counts."""

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """As many images of each class, drawn from all images and their transformed copies."""
        enlarged, notes = super().resample(samples, dataset, seed)
        resampled, more = Sampler().resample(enlarged, dataset, seed)
        return resampled, notes + more


@register_balancer("online-augmentation")
@dataclass(frozen=True)
class OnlineAugmentation(Transforming):
    """Online augmentation: every image is transformed at random, anew in each epoch."""

    def augment(self, images: Tensor, dataset: Dataset, rng: Streams) -> Tensor:
        """The batch, transformed."""
        return self.transform(images, dataset.mirror, rng.fork("augmentation"))
