"""Networks with known robustness, by closed forms and by exact enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from robbench.certificates._bounds import proved
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Threat


class Plain(Classifier):
    """A network of layers as a classifier."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores

    def embed(self, images: Tensor) -> Tensor:
        return self.forward(images)


def tiny_relu(seed: int, inputs: int = 2, hidden: int = 4, layers: int = 1, classes: int = 3) -> Plain:
    """A random ReLU network on images of shape ``(1, 1, inputs)``, in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *[hidden] * layers, classes]
    parts: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layer = nn.Linear(before, after, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(after, before, generator=generator, dtype=torch.float64))
            assert layer.bias is not None
            layer.bias.copy_(torch.randn(after, generator=generator, dtype=torch.float64) / 2)
        parts += [layer, nn.ReLU()]
    return Plain(nn.Sequential(*parts[:-1]), classes)


def exact_linf(model: Plain, image: Tensor, label: int) -> float:
    """The Linf distance to another class within [0, 1], by a linear program for each activation pattern."""
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    weights = [(part.weight.numpy(), part.bias.detach().numpy()) for part in linear]
    point = image.flatten().numpy()
    hidden = sum(len(bias) for _, bias in weights[:-1])
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=hidden):
        slopes, offsets = np.eye(len(point)), np.zeros(len(point))
        rows: list[NDArray[np.float64]] = []
        limits: list[float] = []
        left = list(pattern)
        for weight, bias in weights[:-1]:
            on, left = np.array(left[: len(bias)]), left[len(bias) :]
            slopes, offsets = weight @ slopes, weight @ offsets + bias
            sign = 1 - 2 * on[:, None]  # values that are on are at least 0, the others at most
            rows += list(sign * slopes)
            limits += list(-sign[:, 0] * offsets)
            slopes, offsets = on[:, None] * slopes, on * offsets
        slopes, offsets = weights[-1][0] @ slopes, weights[-1][0] @ offsets + weights[-1][1]
        for other in range(len(offsets)):
            if other != label:
                crossed = [*rows, slopes[label] - slopes[other]]
                at = [*limits, offsets[other] - offsets[label]]
                best = min(best, _distance(np.array(crossed), np.array(at), point))
    return best


def _distance(rows: NDArray[np.float64], limits: NDArray[np.float64], point: NDArray[np.float64]) -> float:
    """The Linf distance from a point to a polytope within [0, 1]; infinite where it is empty."""
    size = len(point)
    eye, ones = np.eye(size), np.ones((size, 1))
    matrix = np.block([[rows, np.zeros((len(rows), 1))], [eye, -ones], [-eye, -ones]])
    bound = np.concatenate([limits, point, -point])
    found = linprog([0] * size + [1], matrix, bound, bounds=[(0, 1)] * size + [(0, None)])
    return float(found.fun) if found.success else np.inf


def radii(model: Classifier, images: Tensor, threat: Threat, *, linear: bool = True) -> Tensor:
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
        return proved(model, images, labels, threat, linear=linear).radius
