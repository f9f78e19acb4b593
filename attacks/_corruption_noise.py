"""Corruptions by noise in every value, after Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.sample_rng import Streams


def gaussian_noise(images: Tensor, rng: Streams, std: float) -> Tensor:
    """Images plus Gaussian noise, clipped to [0, 1]."""
    return (images + std * _normal(images, rng)).clamp(0, 1)


def speckle_noise(images: Tensor, rng: Streams, std: float) -> Tensor:
    """Images plus Gaussian noise in proportion to each value, clipped to [0, 1]."""
    return (images + images * std * _normal(images, rng)).clamp(0, 1)


def shot_noise(images: Tensor, rng: Streams, photons: float) -> Tensor:
    """Images as counted photons: every value is Poisson with mean ``photons`` where it is 1, clipped to [0, 1]."""
    # The middle of the interval that 24 random bits stand for, so that none is 0 or 1.
    uniform = rng.uniform("noise", tuple(images.shape[1:]), dtype=torch.float64) + 2.0**-25
    return (poisson(photons * images.double(), uniform) / photons).to(images.dtype).clamp(0, 1)


def impulse_noise(images: Tensor, rng: Streams, share: float) -> Tensor:
    """Images of which a share of the values has become 0 or 1, as many the one as the other."""
    chance = rng.uniform("noise", tuple(images.shape[1:]), dtype=torch.float64)
    salted = torch.where(chance >= 1 - share / 2, 1.0, images)
    return torch.where(chance < share / 2, 0.0, salted)


def _normal(images: Tensor, rng: Streams) -> Tensor:
    return rng.normal("noise", tuple(images.shape[1:]), dtype=images.dtype)


def poisson(rates: Tensor, uniform: Tensor) -> Tensor:
    """Poisson numbers by inversion: the smallest whose distribution function reaches a uniform number.

    Args:
        rates: Means, float64, not negative.
        uniform: In (0, 1), float64, same shape.

    Returns:
        Whole numbers as float64, same shape.
    """
    # A normal number with the skewness of the distribution (Cornish and Fisher, 1938) is right but for a few in a
    # hundred, and off by one there; those walk to their quantiles.
    normal: Tensor = torch.special.ndtri(uniform)
    guess = rates + rates.sqrt() * normal + (normal.square() - 1) / 6
    counts = (guess + 0.5).floor().clamp(min=0).flatten()
    rates, uniform = rates.flatten(), uniform.flatten()
    walking = torch.arange(len(counts), device=counts.device)
    while len(walking):
        here, rate, level = counts[walking], rates[walking], uniform[walking]
        up = _reached(here, rate) < level
        down = (here > 0) & (_reached(here - 1, rate) >= level)
        counts[walking] = here + up.double() - down.double()
        walking = walking[up | down]
    return counts.reshape(guess.shape)


def _reached(counts: Tensor, rates: Tensor) -> Tensor:
    """Probability of at most so many, which is the regularized upper incomplete gamma function."""
    probability: Tensor = torch.special.gammaincc(counts + 1, rates)
    return probability
