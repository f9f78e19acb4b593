"""Pictures that are made up, for attacks that change what images show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def scenes(count: int, height: int = 32, width: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pictures with detail at several scales."""
    generator = torch.Generator().manual_seed(height + 100 * width)
    total = torch.zeros(count, 3, height, width, dtype=torch.float64)
    for side, weight in ((2, 0.5), (5, 0.3), (11, 0.2), (32, 0.08)):
        noise = torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)
        total += weight * functional.interpolate(noise, size=(height, width), mode="bilinear")
    return (1.6 * (total - 0.54) + 0.45).clamp(0, 1).to(dtype)
