"""Corruptions by weather, after Hendrycks and Dietterich (2019). Lengths are in pixels of a 32×32 image.

Layers that lie over the images are made in float64, so that what a threshold cuts off is the same everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robbench.attacks._corruption_filters import scale, smeared, smooth
from robbench.attacks._warp import enlarged
from robbench.attacks.color_jitter import grayscale
from robbench.core.sample_rng import Draw, Streams

_ICE = (0.82, 0.93, 1.0)
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)


def plasma(rng: Streams, draw: Draw, height: int, width: int, decay: float) -> Tensor:
    """Clouds: diamond-square fractals (Fournier, Fussell and Carpenter, 1982) on a torus, cut to size.

    Args:
        rng: One stream per sample.
        draw: Names the draw.
        height: Rows of the result.
        width: Columns of the result.
        decay: The squares of this number divide the noise from one scale to the next finer one.

    Returns:
        From 0 to 1 over the whole torus, float64, shape ``(N, 1, height, width)``.
    """
    names = draw if isinstance(draw, tuple) else (draw,)
    size = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    clouds = torch.zeros(len(rng), size, size, dtype=torch.float64, device=rng.keys.device)
    step, noise = size, 1.0
    while step > 1:
        half, points = step // 2, (size // step, size // step)
        corners = clouds[:, ::step, ::step]
        below, right = corners.roll(-1, dims=1), corners.roll(-1, dims=2)

        def near(mean: Tensor, part: str, noise: float = noise, points: tuple[int, int] = points) -> Tensor:
            return mean + rng.uniform((*names, part, points[0]), points, -noise, noise, dtype=torch.float64)

        middles = near((corners + below + right + below.roll(-1, dims=2)) / 4, "middles")
        across = near((corners + right + middles + middles.roll(1, dims=1)) / 4, "across")
        down = near((corners + below + middles + middles.roll(1, dims=2)) / 4, "down")
        clouds[:, half::step, half::step] = middles
        clouds[:, ::step, half::step] = across
        clouds[:, half::step, ::step] = down
        # The published script multiplies by the falling number twice, and its severities are chosen for that.
        step, noise = half, noise / decay**2
    low, high = clouds.amin(dim=(1, 2), keepdim=True), clouds.amax(dim=(1, 2), keepdim=True)
    return ((clouds - low) / (high - low))[:, None, :height, :width]


def fog(images: Tensor, rng: Streams, density: float, decay: float) -> Tensor:
    """Images behind clouds of light, with what is brightest as bright as before."""
    height, width = images.shape[-2:]
    clouds = plasma(rng, "clouds", height, width, decay).to(images.dtype)
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return ((images + density * clouds) * brightest / (brightest + density)).clamp(0, 1)


def ice(rng: Streams, height: int, width: int) -> Tensor:
    """Made-up frost on a window: bright patches under needles, which are the ridges of rougher clouds.

    Returns:
        Floats in [0, 1], float64, shape ``(N, 3, height, width)``.
    """
    patches = plasma(rng, "patches", height, width, 1.5)
    needles = [1 - (2 * plasma(rng, ("needles", layer), height, width, 1.3) - 1).abs() for layer in range(2)]
    light = (0.6 * patches + 0.7 * torch.maximum(*needles) ** 8 * patches).clamp(0, 1)
    tint = torch.tensor(_ICE, dtype=light.dtype, device=light.device)[:, None, None]
    return light ** (1 / tint)


def frost(images: Tensor, rng: Streams, share: float, amount: float) -> Tensor:
    """Images under ice. The published ones are under photographs of frost; this ice is made up."""
    height, width = images.shape[-2:]
    layer = _like(ice(rng, height, width).to(images.dtype), images)
    return (share * images + amount * layer).clamp(0, 1)


def snow(
    images: Tensor,
    rng: Streams,
    mean: float,
    std: float,
    flake: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whitened images under two layers of falling flakes, one the other turned by 180°.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``.
        rng: One stream per sample.
        mean: Of the noise that becomes flakes.
        std: Of the noise.
        flake: Size of a flake.
        threshold: What the noise must reach for a flake to be there.
        radius: Of the motion of falling flakes; see ``smeared``.
        sigma: Of that motion.
        share: Of the image as it was; the rest is whitened.
    """
    size = scale(images)
    layer = _layer(images, rng, mean, std, None, flake * size)
    layer = torch.where(layer >= threshold, layer, 0).clamp(0, 1)
    angles = rng.uniform("angle", (), -135.0, -45.0, dtype=torch.float64)
    layer = smeared(layer, radius * size, sigma * size, angles).to(images.dtype)
    white = torch.maximum(images, 1.5 * grayscale(images) + 0.5)
    return (share * images + (1 - share) * white + layer + layer.rot90(2, dims=(2, 3))).clamp(0, 1)


def spatter(
    images: Tensor, rng: Streams, mean: float, std: float, sigma: float, threshold: float, amount: float, muddy: bool
) -> Tensor:
    """Images behind drops of water or mud.

    Drops of water shine by a relief of their own, lit from the upper left; that of the published script differs.

    Args:
        images: Floats in [0, 1], shape ``(N, C, H, W)``.
        rng: One stream per sample.
        mean: Of the noise that becomes drops.
        std: Of the noise.
        sigma: Of the Gaussian that joins drops.
        threshold: What the smooth noise must reach for a drop to be there.
        amount: How bright the brightest water is; of mud, the standard deviation of the Gaussian at its rim.
        muddy: Whether it is mud.
    """
    size = scale(images)
    layer = _layer(images, rng, mean, std, sigma, size)
    drops = (layer >= threshold).to(layer.dtype)
    color = torch.tensor(_MUD if muddy else _WATER, dtype=images.dtype, device=images.device)[None, :, None, None]
    color = _like(color, images)
    if muddy:
        soft = smooth(drops, amount * size)
        cover = torch.where(soft >= 0.8, soft, 0).to(images.dtype)
        return ((1 - cover) * images + cover * color).clamp(0, 1)
    height = smooth(drops, size)
    slope = height - height.roll((round(size), round(size)), dims=(2, 3))
    shine = drops * layer * (1 + slope.clamp(min=0))
    brightest = shine.amax(dim=(1, 2, 3), keepdim=True)
    shine = amount * shine / torch.where(brightest > 0, brightest, 1.0)
    return (images + shine.to(images.dtype) * color).clamp(0, 1)


def _like(color: Tensor, images: Tensor) -> Tensor:
    """A layer in RGB as it is, or its luma where the images are not RGB."""
    return color if images.shape[1] == 3 else grayscale(color)


def _layer(images: Tensor, rng: Streams, mean: float, std: float, sigma: float | None, factor: float) -> Tensor:
    """Noise on a grid of 32×32 or so, smoothed there, then enlarged to the size of the images, ``(N, 1, H, W)``."""
    height, width = images.shape[-2:]
    size = scale(images)
    noise = rng.normal("layer", (1, math.ceil(height / size), math.ceil(width / size)), dtype=torch.float64)
    noise = mean + std * noise
    return enlarged(noise if sigma is None else smooth(noise, sigma), factor, (height, width))
