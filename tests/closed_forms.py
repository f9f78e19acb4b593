"""Models whose best attacks are known in closed form, in float64, and what attacks are held to on them."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

SHAPE = (3, 4, 4)
SIZE = 48


class Linear(Classifier):
    """Scores ``W x + b``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = torch.nn.Parameter(bias, requires_grad=False)
        self.num_classes = len(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Constant(Linear):
    """Says class 0, whatever it sees; its scores do not depend on the image at all."""

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


class Counting(Classifier):
    """A model that charges every pass to the samples it is made for."""

    def __init__(self, model: Classifier, forwards: Tensor, backwards: Tensor, index: Tensor) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes
        self.forwards, self.backwards, self.index = forwards, backwards, index

    @classmethod
    def of(cls, model: Classifier, count: int) -> Counting:
        return cls(model, torch.zeros(count), torch.zeros(count), torch.arange(count)).eval()

    def subset(self, index: Tensor) -> Counting:
        return Counting(self.model, self.forwards, self.backwards, self.index[index]).eval()

    def forward(self, images: Tensor) -> Tensor:
        assert len(images) == len(self.index), "a pass over samples other than those it is charged to"
        self.forwards[self.index] += 1
        scores: Tensor = self.model(images)
        if scores.requires_grad:
            scores.register_hook(self._charge_backward)
        return scores

    def _charge_backward(self, gradient: Tensor) -> None:
        self.backwards[self.index] += 1

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(images)


def numbers(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64, without touching the global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(seed: int, classes: int) -> Linear:
    """A random linear model that sees grey as undecided."""
    weight = numbers(seed, classes, SIZE)
    return Linear(weight, -weight.sum(dim=1) / 2).eval()


def images_near(middle: float, room: float, count: int, seed: int = 1) -> Tensor:
    """Images with all values within ``room`` of ``middle``."""
    noise = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return middle + room * (2 * noise - 1)


def streams(count: int, seed: int = 0) -> Streams:
    return Streams.of(torch.arange(count), seed, "test")


def margins(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the label less the best other score, shape ``(N,)``."""
    with torch.no_grad():
        scores = model(images)
    own = scores.gather(1, labels[:, None])
    result: Tensor = (own - scores.scatter(1, labels[:, None], -torch.inf)).amin(dim=1)
    return result


def distances(model: Linear, images: Tensor, labels: Tensor, norm: Norm) -> Tensor:
    """Distance to the boundary with each class, shape ``(N, K)`` (truth 2, no box); infinite for the label."""
    scores = model(images)
    gaps = scores.gather(1, labels[:, None]) - scores
    slopes = model.weight[None] - model.weight[labels][:, None]
    sizes = torch.linalg.vector_norm(slopes, {"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=2)
    return torch.where(sizes > 0, gaps / sizes, torch.inf)


def largest_gain(slopes: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """How much a linear function of slope ``(N, D)`` can rise within ball and box, shape ``(N,)`` (truth 1).

    In Linf with the box, in L1 and L2 without it.
    """
    flat = images.flatten(1)
    if norm == "linf":
        room = torch.where(slopes > 0, 1 - flat, flat)
        return (slopes.abs() * room.clamp(max=eps)).sum(dim=1)
    result: Tensor = eps * torch.linalg.vector_norm(slopes, 2 if norm == "l2" else torch.inf, dim=1)
    return result


def norms(change: Tensor, norm: Norm) -> Tensor:
    order = {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    result: Tensor = torch.linalg.vector_norm(change.double().flatten(1), order, dim=1)
    return result


def assert_allowed(images: Tensor, attacked: Tensor, threat: Threat) -> None:
    """What the referee asks of returned images."""
    assert attacked.shape == images.shape
    assert attacked.dtype == images.dtype
    assert bool(attacked.isfinite().all())
    assert bool(((attacked >= 0) & (attacked <= 1)).all()), "outside [0, 1]"
    if threat.eps is not None:
        sizes = norms(attacked.double() - images.double(), threat.norm)
        assert bool((sizes <= threat.eps * (1 + 1e-5) + 1e-6).all()), f"outside the ball: {float(sizes.max())}"


def assert_optimal(attack: Attack, norm: Norm, eps: float, targeted: bool = False) -> None:
    """The attack reaches the best that can be done on a two-class linear model, and no more than is allowed.

    In Linf images may lie at the border of the box; in L2 and L1 the box must not come into play.
    """
    room = 0.5 if norm == "linf" else 0.05
    model, images = linear(3, 2), images_near(0.5, room, 32)
    with torch.no_grad():
        labels = model.predict(images)
    threat = Threat(norm, eps, targeted)
    given = 1 - labels if targeted else labels
    attacked = attack.perturb(model, images, given, threat, streams(32))
    assert_allowed(images, attacked, threat)
    slopes = model.weight[1 - labels] - model.weight[labels]
    best = largest_gain(slopes, images, norm, eps)
    gained = margins(model, images, labels) - margins(model, attacked, labels)
    torch.testing.assert_close(gained, best, rtol=1e-6, atol=1e-9)
