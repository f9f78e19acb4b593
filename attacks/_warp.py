"""Geometric transformations: images read between their pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robbench.attacks._projections import per_sample


def positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, shapes ``(H, 1)`` and ``(W,)``, in the images' dtype."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)
    return rows[:, None], torch.arange(width, device=images.device, dtype=images.dtype)


def centered(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel from the middle of the image."""
    height, width = images.shape[-2:]
    rows, columns = positions(images)
    return rows - (height - 1) / 2, columns - (width - 1) / 2


def turned(rows: Tensor, columns: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Where a rotation counter-clockwise about the origin reads from.

    Args:
        rows: Shape ``(H, 1)``.
        columns: Shape ``(W,)``.
        degrees: Angles, shape ``(N,)``, or one for all, shape ``()``.

    Returns:
        Rows and columns, each of shape ``(N, H, W)``, or ``(1, H, W)``.
    """
    radians = torch.deg2rad(degrees.double())
    cosine, sine = (per_sample(part.to(rows.dtype), rows[None]) for part in (radians.cos(), radians.sin()))
    return sine * columns + cosine * rows, cosine * columns - sine * rows


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
    rows, columns = centered(images.new_empty(shape or (height, width)))
    return sample(images, rows / factor + (height - 1) / 2, columns / factor + (width - 1) / 2)
