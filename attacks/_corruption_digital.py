"""Corruptions by cameras, screens and files, after Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robbench.attacks._corruption_filters import smooth
from robbench.attacks._jpeg import jpeg
from robbench.attacks._warp import positions, sample
from robbench.core.sample_rng import Streams


def brightness(images: Tensor, amount: float) -> Tensor:
    """Images whose value, in HSV (Smith, 1978), is raised by an amount."""
    value = images.amax(dim=1, keepdim=True)
    raised = (value + amount).clamp(0, 1)
    # Hue and saturation stay as they are where all three channels grow by one factor.
    return torch.where(value > 0, images * (raised / torch.where(value > 0, value, 1.0)), raised).clamp(0, 1)


def saturate(images: Tensor, factor: float, amount: float) -> Tensor:
    """RGB images whose saturation, in HSV, is multiplied and then raised. Gray has the hue of red there."""
    if images.shape[1] != 3:
        return images.clone()
    value = images.amax(dim=1, keepdim=True)
    spread = value - images.amin(dim=1, keepdim=True)
    saturation = spread / torch.where(value > 0, value, 1.0)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=images.dtype, device=images.device)[:, None, None]
    lack = torch.where(spread > 0, (value - images) / torch.where(spread > 0, spread, 1.0), red)
    return value * (1 - (factor * saturation + amount).clamp(0, 1) * lack)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Images whose values come nearer to the mean of their channel."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def box_weights(size: int, target: int, like: Tensor) -> Tensor:
    """Weights of Pillow's box filter from ``size`` to ``target`` pixels, shape ``(target, size)``."""
    import numpy as np
    from PIL import Image

    # Its effect on unit vectors is all there is to know of a linear filter.
    units = Image.fromarray(np.eye(size, dtype=np.float32))
    weights = np.array(units.resize((target, size), Image.Resampling.BOX)).T
    return torch.from_numpy(weights).to(like.device, like.dtype)


def pixelate(images: Tensor, share: float) -> Tensor:
    """Images brought to a share of their size and back by box filters."""
    for axis in (-2, -1):
        size = images.shape[axis]
        small = max(1, int(size * share))
        weights = box_weights(small, size, images) @ box_weights(size, small, images)
        images = (weights @ images.transpose(axis, -2)).transpose(axis, -2)
    return images.clamp(0, 1)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Images written as JPEG files and read again."""
    return jpeg(images, quality).contiguous()


def elastic_transform(images: Tensor, rng: Streams, amount: float, sigma: float, slant: float) -> Tensor:
    """Images under a random affine map and random smooth displacements (Simard, Steinkraus and Platt, 2003).

    Both are applied in one reading between pixels, mirrored at the border.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``.
        rng: One stream per sample.
        amount: Largest displacement before smoothing, as a share of the shorter side, as the others are.
        sigma: Standard deviation of the Gaussian that smooths displacements.
        slant: How far three points, a third of the side from the middle, move at the most.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    rows, columns = positions(images)
    middle, arm = torch.tensor([height // 2, width // 2], dtype=torch.float64), side // 3
    corners = middle + arm * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    moves = rng.uniform("corners", (3, 2), -slant * side, slant * side, dtype=torch.float64)
    # An affine map is known by what it does to three points.
    frame = torch.cat([corners, torch.ones(3, 1, dtype=torch.float64)], dim=1).to(moves.device)
    slopes = torch.linalg.solve(frame.expand(len(images), 3, 3), moves).to(images.dtype)[:, :, :, None, None]
    affine = slopes[:, 0] * rows + slopes[:, 1] * columns + slopes[:, 2]
    if amount > 0:
        field = rng.uniform("field", (2, height, width), -1.0, 1.0, dtype=images.dtype)
        affine = affine + amount * side * smooth(field, sigma * side, math.ceil(3 * sigma * side))
    return sample(images, rows + affine[:, 0], columns + affine[:, 1], "reflection").clamp(0, 1)
