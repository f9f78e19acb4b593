"""What corruptions are made of: smoothing and sampling at the size of the image.

The published sizes are meant for 32×32 pixels. Lengths are multiplied by ``scale``; below 32 pixels they stay as they
are, since many are less than a pixel already.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

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


def positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, shapes ``(H, 1)`` and ``(W,)``, in the images' dtype."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)
    return rows[:, None], torch.arange(width, device=images.device, dtype=images.dtype)


def sample(
    images: Tensor, rows: Tensor, columns: Tensor, border: Literal["border", "reflection", "zeros"] = "border"
) -> Tensor:
    """Images read between their pixels, bilinearly.

    Args:
        images: Shape ``(N, C, H, W)``.
        rows: Where to read, in pixels from the middle of the first row; broadcasts with ``columns`` to ``(N, h, w)``.
        columns: The same for columns.
        border: What lies outside: the border pixels going on, the image mirrored, or black.

    Returns:
        Shape ``(N, C, h, w)``.
    """
    height, width = images.shape[-2:]
    shape = (rows + columns).shape[-2:]
    across, down = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1
    grid = torch.stack([part.expand(len(images), *shape) for part in (across, down)], dim=-1)
    return functional.grid_sample(images, grid, "bilinear", border, align_corners=False)


def enlarged(images: Tensor, factor: float, shape: tuple[int, int] | None = None) -> Tensor:
    """The middle of images ``(N, C, H, W)``, a number of times as large.

    Args:
        images: Floats.
        factor: How many times.
        shape: Height and width of the result; those of the images where it is None.
    """
    height, width = images.shape[-2:]
    to_height, to_width = shape or (height, width)
    rows, columns = positions(images.new_empty(to_height, to_width))
    return sample(
        images,
        (rows - (to_height - 1) / 2) / factor + (height - 1) / 2,
        (columns - (to_width - 1) / 2) / factor + (width - 1) / 2,
    )


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
