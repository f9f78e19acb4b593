"""Networks of others with proved robustness, built from arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def make(path: str) -> nn.Module:
    """The network in an npz file, on images in [0, 1] or, where the file has mean and std, on normalized ones."""
    with np.load(Path(path), allow_pickle=False) as arrays:
        parts: list[nn.Module] = [nn.Flatten()]
        if "conv1_w" in arrays:
            convolutions = [(_convolution(arrays, name), nn.ReLU()) for name in ("conv1", "conv2")]
            parts = [*(part for pair in convolutions for part in pair), nn.Flatten()]
        parts += [_linear(arrays, "fc1"), nn.ReLU(), _linear(arrays, "fc2")]
    return nn.Sequential(*parts)


def _convolution(arrays: Any, name: str) -> nn.Module:
    out, given, size, _ = arrays[f"{name}_w"].shape
    made = nn.Conv2d(given, out, size, stride=int(arrays["stride"]), padding=int(arrays["padding"]))
    return _filled(made, arrays, name)


def _linear(arrays: Any, name: str) -> nn.Module:
    out, given = arrays[f"{name}_w"].shape
    return _filled(nn.Linear(given, out), arrays, name)


def _filled(part: nn.Conv2d | nn.Linear, arrays: Any, name: str) -> nn.Module:
    with torch.no_grad():
        part.weight.copy_(torch.from_numpy(arrays[f"{name}_w"]))
        assert part.bias is not None
        part.bias.copy_(torch.from_numpy(arrays[f"{name}_b"]))
    return part
