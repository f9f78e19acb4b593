"""Shrinking images to a random size and putting them in a random place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.sample_rng import Streams
from robbench.defenses._random_front import RandomPreprocessing


@register_defense("resize-pad")
@dataclass(frozen=True)
class ResizePad(RandomPreprocessing):
    """Random resizing and padding (Xie et al., "Mitigating adversarial effects through randomization", 2018).

    Each draw shrinks an image to a random size by linear interpolation and pads it with black on random sides. Xie et
    al. enlarge images instead; shrinking keeps their shape, so that any model will do.

    Attributes:
        smallest: Smallest size, relative to the image's.
    """

    smallest: Annotated[float, Field(gt=0, le=1)] = 0.8

    def change(self, images: Tensor, rng: Streams, draw: int) -> Tensor:
        """The images resized and padded, each in its own way."""
        share = rng.uniform(("share", draw), (), self.smallest, 1, dtype=torch.float64)
        rows, columns = (
            _placed(size, share, rng.uniform((axis, draw), (), dtype=torch.float64)).to(images.dtype)
            for axis, size in (("rows", images.shape[2]), ("columns", images.shape[3]))
        )
        return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def _placed(size: int, share: Tensor, place: Tensor) -> Tensor:
    """The matrices that shrink a side of each image and pad it to its old length.

    Args:
        size: Length of the side in pixels.
        share: New length relative to the old one, at most 1, shape ``(N,)``.
        place: Where it lies in the room that is left, in [0, 1), shape ``(N,)``.

    Returns:
        Weights of old pixels (columns) in new ones (rows), float64, shape ``(N, size, size)``.
    """
    length = (share * size).round().clamp_min(1)
    start = (place * (size - length + 1)).floor()
    pixels = torch.arange(size, dtype=share.dtype, device=share.device)
    inside = (pixels - start[:, None] + 0.5) / length[:, None]
    source = (inside * size - 0.5).clamp(0, size - 1)
    weights = (1 - (source[:, :, None] - pixels).abs()).clamp_min(0)
    return weights * ((inside > 0) & (inside < 1))[:, :, None]
