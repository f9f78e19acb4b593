"""HopSkipJump: along the decision boundary to its nearest point, from hard predictions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import steepest_step
from robbench.attacks._minimum_norm import Nearest, size_of
from robbench.attacks._projections import l2_direction, per_sample
from robbench.attacks._survivors import Kept, Survivors
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.rejection import misled
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

_AT_ONCE = 8
"""Draws per call of the model. A constant, so that what a sample costs does not depend on the batch that it is in."""
_HALVINGS = 24
"""Of a distance, until float32 tells no difference. The paper's tolerance asks for 18 in L2 and 24 in Linf on 32 × 32
color images, and for fewer on smaller ones."""


@register_attack("hop-skip-jump", norms=("l2", "linf"), brief="HopSkipJumpAttack")
@dataclass(frozen=True)
class HopSkipJump(Attack):
    """HopSkipJumpAttack (Chen, Jordan and Wainwright, IEEE S&P 2020, algorithm 2), from hard predictions.

    A search starts at an image of uniform noise that fools the model and goes to the boundary on the way back to the
    sample. There, the predictions on random changes, a fraction ``1 / D`` of the distance in L2 norm, estimate the
    direction in which to leave the boundary (their mean subtracted); the step, first ``distance / sqrt(t)``, is halved
    until it fools the model, and the next boundary is looked for on the way back from there.
    The nearest of the boundary points is returned. Random directions are uniform in the cube and scaled to length 1:
    not uniform on the sphere as in the paper, but uncorrelated and equally wide as there, and drawn much faster.

    Misclassified samples, and those for which no noise fools the model, come back as they are: a model that sees one
    class in all noise cannot be attacked in this way on samples of that class. Untargeted only, since a target
    would need an image of its class to start from.
    Costs a forward pass on the image, up to ``starts`` for the noise, 24 for each search of the boundary, and in
    iteration t ``initial_queries * sqrt(t)`` and up to 24 for the step: 7,244 with the defaults, of which a sample that
    is fooled by the first noise and steps spends 6,700.

    Attributes:
        iterations: Estimates of a direction, with a step along each.
        initial_queries: Random changes of the first estimate.
        starts: Images of noise that are tried at the most.
    """

    iterations: Annotated[int, Field(ge=1)] = 20
    initial_queries: Annotated[int, Field(ge=2)] = 100
    starts: Annotated[int, Field(ge=1)] = 100

    bounded: ClassVar[bool] = False
    black_box: ClassVar[bool] = True
    decision_based: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The nearest images found that fool the model, or the images themselves."""
        everyone, starts, found = Survivors.of(model, images, labels, threat, rng), Kept.of(images), images.clone()
        left = everyone[~everyone.fools(images)]
        with torch.no_grad():
            self._start(left, starts)
            left = left[starts.fooled[left.index]]
            if left:
                found[left.index] = self._search(left.alone(), starts.images[left.index], threat.norm)
        return found

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """A limit on the change, or a target."""
        if threat.eps is not None:
            return "the attack looks for the smallest change by itself; give no eps"
        return "the attack has no targeted form" if threat.targeted else None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """All searches, estimates and steps."""
        estimates = sum(self._queries(iteration) for iteration in range(1, self.iterations + 1))
        return 1 + self.starts + estimates + (2 * self.iterations + 1) * _HALVINGS, 0

    def _queries(self, iteration: int) -> int:
        return int(self.initial_queries * math.sqrt(iteration))

    def _start(self, left: Survivors, starts: Kept) -> None:
        """Keep the first images of noise that fool the model."""
        for first in range(0, self.starts, _AT_ONCE):
            if not left:
                break
            shape = (min(_AT_ONCE, self.starts - first), *left.images.shape[1:])
            tried = left.rng.uniform(("start", first), shape, dtype=left.images.dtype)
            fooled = _fools(left, tried)
            hit, chosen = fooled.any(dim=1), fooled.int().argmax(dim=1)
            starts.offer(left, tried[torch.arange(len(left), device=chosen.device), chosen], hit)
            left = left[~hit]

    def _search(self, left: Survivors, start: Tensor, norm: Norm) -> Tensor:
        """Algorithm 2: from boundary point x_t along an estimated direction, and back to the boundary."""
        x, nearest = left.images, Nearest.to(left.images)
        beyond = start
        x_t = _boundary(left, beyond, norm)
        for t in range(1, self.iterations + 1):
            xi = size_of(x_t - x, norm)
            nearest.offer(left, x_t, xi, torch.ones_like(xi, dtype=torch.bool))
            delta, count = size_of(beyond - x, norm) / x[0].numel(), self._queries(t)
            v = _direction(left, x_t, delta, count, left.rng.fork("iteration", t))
            beyond = _step(left, x_t, steepest_step(x_t, v, norm, 1.0), xi / math.sqrt(t))
            x_t = _boundary(left, beyond, norm)
        xi = size_of(x_t - x, norm)
        nearest.offer(left, x_t, xi, torch.ones_like(xi, dtype=torch.bool))
        return nearest.images


def _fools(left: Survivors, images: Tensor) -> Tensor:
    """Which images are misclassified, for ``(M, C, H, W)`` or several of each sample ``(M, B, C, H, W)``."""
    decisions = left.model.predict(images.flatten(0, -4)).reshape(images.shape[:-3])
    return misled(decisions, per_sample(left.labels, decisions))


def _boundary(left: Survivors, beyond: Tensor, norm: Norm) -> Tensor:
    """Bisection between images and what fools the model: the last point met that fools it (algorithm 1).

    In L2 the way is straight; in Linf every value goes back to the same distance at most.
    """
    x, change, kept = left.images, beyond - left.images, beyond
    whole = size_of(change, "linf").to(x.dtype)
    low, high = torch.zeros_like(whole), torch.ones_like(whole)
    for _ in range(_HALVINGS):
        alpha = (low + high) / 2
        reach = per_sample(alpha * whole, x)
        part = change.clamp(-reach, reach) if norm == "linf" else per_sample(alpha, x) * change
        tried = (x + part).clamp(0, 1)
        fooled = _fools(left, tried)
        low, high = torch.where(fooled, low, alpha), torch.where(fooled, alpha, high)
        kept = torch.where(per_sample(fooled, x), tried, kept)
    return kept


def _direction(left: Survivors, x_t: Tensor, delta: Tensor, count: int, rng: Streams) -> Tensor:
    """Where predictions turn wrong around x_t, up to its length (equation 16); zero where all predictions agree."""
    total, changes, weighted = torch.zeros_like(delta), torch.zeros_like(x_t), torch.zeros_like(x_t)
    around = x_t[:, None]
    for first in range(0, count, _AT_ONCE):
        noise = _directions(rng, first, min(_AT_ONCE, count - first), x_t)
        tried = (around + per_sample(delta.to(x_t.dtype), around) * noise).clamp(0, 1)
        phi = 2 * _fools(left, tried).to(x_t.dtype) - 1
        # What was tried, rather than what was drawn: the box and rounding have changed it.
        moved = tried - around
        total += phi.sum(dim=1)
        changes += moved.sum(dim=1)
        weighted += (phi[:, :, None, None, None] * moved).sum(dim=1)
    return weighted - per_sample((total / count).to(x_t.dtype), x_t) * changes


def _directions(rng: Streams, first: int, count: int, like: Tensor) -> Tensor:
    """Random changes of L2 norm 1, shape ``(N, count, C, H, W)``."""
    values = like[0].numel()
    # Four values from every 64 random bits: drawing them costs more than asking a small network about them.
    numbers = rng.bits(("direction", first), (count, -(-values // 4))).view(torch.int16)[:, :, :values]
    return l2_direction((numbers.to(like.dtype) + 0.5).flatten(0, 1)).reshape(len(like), count, *like.shape[1:])


def _step(left: Survivors, x_t: Tensor, direction: Tensor, size: Tensor) -> Tensor:
    """Points moved by a step that is halved until it fools the model; those for which none does stay."""
    moved = x_t.clone()
    for halvings in range(_HALVINGS):
        if not left:
            break
        i = left.index
        length = per_sample((size[i] / 2**halvings).to(x_t.dtype), x_t)
        tried = (x_t[i] + length * direction[i]).clamp(0, 1)
        fooled = _fools(left, tried)
        moved[i[fooled]] = tried[fooled]
        left = left[~fooled]
    return moved
