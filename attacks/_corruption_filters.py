"""The filters of corruptions, at the size of the image.

The published sizes are meant for 32×32 pixels. Lengths are multiplied by ``scale``; below 32 pixels they stay as they
are, since many are less than a pixel already.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robbench.attacks._warp import positions, sample

REFERENCE_SIDE = 32


def scale(images: Tensor) -> float:
    """How many times longer than 32 pixels the shorter side of images ``(..., H, W)`` is, at least 1."""
    return max(1.0, min(images.shape[-2:]) / REFERENCE_SIDE)


def gaussian_weights(sigma: float, reach: int, like: Tensor) -> Tensor:
    """A Gaussian cut off at ``reach`` pixels to either side, summing to 1, shape ``(2 * reach + 1,)``."""
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=like.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    return (weights / weights.sum()).to(like.dtype)


def smooth(images: Tensor, sigma: float, reach: int | None = None) -> Tensor:
    """Images ``(N, C, H, W)`` under a Gaussian, with their border pixels going on outside.

    Agrees with ``scipy.ndimage.gaussian_filter(mode="nearest")``.

    Args:
        images: Floats.
        sigma: Standard deviation in pixels.
        reach: Where the Gaussian ends, in pixels; four standard deviations where it is None.
    """
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5) if reach is None else reach, images)
    return filtered(filtered(images, weights[:, None]), weights[None, :])


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` under a kernel with odd sides, their border pixels going on outside."""
    down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = functional.pad(images, (across, across, down, down), mode="replicate")
    planes = padded.reshape(-1, 1, *padded.shape[-2:])
    return functional.conv2d(planes, kernel[None, None].to(images.dtype)).reshape(images.shape)


def smeared(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` under half a Gaussian along a line, as a camera in motion sees them.

    Args:
        images: Floats.
        radius: The line is ``2 * radius`` pixels long.
        sigma: Standard deviation in pixels.
        angles: Direction in degrees from the horizontal, one per sample, shape ``(N,)``.
    """
    reach = round(2 * radius)
    weights = gaussian_weights(sigma, reach, images)[reach:]
    radians = (angles * (math.pi / 180)).to(images.dtype)[:, None, None]
    rows, columns = positions(images)
    total = torch.zeros_like(images)
    for step, weight in enumerate((weights / weights.sum()).unbind()):
        total = total + weight * sample(images, rows + step * radians.sin(), columns + step * radians.cos())
    return total
