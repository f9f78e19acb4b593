"""Corruptions by blur, after Hendrycks and Dietterich (2019). Lengths are in pixels of a 32×32 image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robbench.attacks._corruption_filters import filtered, gaussian_weights, scale, smeared, smooth
from robbench.attacks._warp import enlarged
from robbench.core.sample_rng import Streams


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images under a Gaussian."""
    return smooth(images, sigma * scale(images)).clamp(0, 1)


def disk(radius: float, sigma: float, reach: int, like: Tensor) -> Tensor:
    """A disk whose rim a Gaussian has softened, summing to 1.

    Args:
        radius: In pixels; the pixels whose middle lies within it belong to the disk.
        sigma: Standard deviation of the Gaussian, in pixels.
        reach: Where the Gaussian ends, in pixels.
        like: What has the dtype and device.
    """
    size = math.floor(radius) + reach
    steps = torch.arange(-size, size + 1, dtype=like.dtype, device=like.device)
    inside = (steps[:, None].square() + steps.square() <= radius**2).to(like.dtype)
    weights = gaussian_weights(sigma, reach, like)
    soft = filtered((inside / inside.sum())[None, None], weights[:, None] * weights)
    return soft[0, 0]


def defocus_blur(images: Tensor, radius: float, sigma: float) -> Tensor:
    """Images out of focus: every point becomes a disk, softened by a Gaussian over the nearest pixels."""
    size = scale(images)
    return filtered(images, disk(radius * size, sigma * size, round(size), images)).clamp(0, 1)


def motion_blur(images: Tensor, rng: Streams, radius: float, sigma: float) -> Tensor:
    """Images smeared along a line, at most 45° from the horizontal."""
    size = scale(images)
    angles = rng.uniform("angle", (), -45.0, 45.0, dtype=torch.float64)
    return smeared(images, radius * size, sigma * size, angles).clamp(0, 1)


def zoom_blur(images: Tensor, largest: float) -> Tensor:
    """The mean of an image and of its enlargements by 1.00, 1.01 and so on up to ``largest``."""
    zooms = [1 + step / 100 for step in range(round(100 * (largest - 1)) + 1)]
    total = images.clone()
    for zoom in zooms:
        total = total + enlarged(images, zoom)
    return (total / (len(zooms) + 1)).clamp(0, 1)


def shuffled(count: int, height: int, width: int, rng: Streams, reach: int, rounds: int) -> Tensor:
    """Pixels that have changed places with near ones, one after the other from the last to the first.

    Those too far apart to reach the same pixel change places at once, which comes to the same.

    Args:
        count: Number of images.
        height: Of each.
        width: Of each.
        rng: Their streams.
        reach: Largest distance between two that change places, along rows and along columns.
        rounds: How often every pixel's turn comes.

    Returns:
        Which pixel has come to each place, counted row by row, int64, shape ``(N, H * W)``.
    """
    order = torch.arange(height * width, device=rng.keys.device).repeat(count, 1)
    # Those nearer to the border than ``reach`` are only chosen by others.
    rows = torch.arange(height - 1 - reach, reach - 1, -1, device=order.device)
    columns = torch.arange(width - 1 - reach, reach - 1, -1, device=order.device)
    places = (rows[:, None] * width + columns).flatten()
    # A row is begun when the one before it is ``2 * reach + 1`` columns ahead.
    step = torch.arange(len(rows))[:, None] * (2 * reach + 1) + torch.arange(len(columns))
    in_step = step.flatten().argsort(stable=True).to(order.device)
    at_once = torch.bincount(step.flatten()).tolist()
    for turn in range(rounds):
        moves = rng.integers(("steps", turn), (len(places), 2), 2 * reach + 1) - reach
        partners = places + moves[:, :, 0] * width + moves[:, :, 1]
        pairs = zip(places[in_step].split(at_once), partners[:, in_step].split(at_once, dim=1), strict=True)
        for here, there in pairs:
            other = order.gather(1, there)
            order.scatter_(1, there, order[:, here])
            order[:, here] = other
    return order


def glass_blur(images: Tensor, rng: Streams, sigma: float, reach: float, rounds: int) -> Tensor:
    """Images under a Gaussian, their pixels then shuffled with near ones, and under the Gaussian again.

    Pixels change places in every direction; the published script copies from above and from the left only.
    """
    size = scale(images)
    height, width = images.shape[-2:]
    order = shuffled(len(images), height, width, rng, round(reach * size), rounds)
    before = smooth(images, sigma * size).flatten(2)
    moved = before.gather(2, order[:, None, :].expand(before.shape)).reshape(images.shape)
    return smooth(moved, sigma * size).clamp(0, 1)
