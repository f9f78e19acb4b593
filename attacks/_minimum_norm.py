"""The shared parts of minimum-norm attacks."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robbench.attacks._losses import Gain, margin
from robbench.attacks._survivors import Survivors
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
_DUALS: dict[str, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True)
class MinimalNormAttack(Attack):
    """An attack that returns, for each sample, the smallest change that it saw change the hard prediction.

    The search follows the scores; the hard prediction tells whether it has succeeded, also where it is not the arg max
    of the scores. Samples that fool the model as they are come back unchanged, and so do those for which nothing was
    found.
    """

    targetable: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The nearest images found that fool the model, or the images themselves. Draws nothing."""
        everyone, nearest = Survivors.of(model, images, labels, threat, rng), Nearest.to(images)
        left = everyone[~everyone.fools(images)]
        if left:
            self.search(left, threat.norm, nearest)
        return nearest.images

    @abc.abstractmethod
    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Offer images that fool the model to ``nearest``.

        Args:
            left: The samples that do not fool it as they are, at least one.
            norm: What is to be small.
            nearest: The nearest images of the whole batch.
        """

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """A limit on the change, or a target where there is no targeted form."""
        if threat.eps is not None:
            return "the attack looks for the smallest change by itself; give no eps"
        if threat.targeted and not self.targetable:
            return "the attack has no targeted form"
        return None


@dataclass(frozen=True)
class Nearest:
    """The nearest images so far that fool a model; ``offer`` writes to both tensors.

    Attributes:
        images: The images themselves where there is none yet, shape ``(N, C, H, W)``.
        sizes: Sizes of the changes, float64, shape ``(N,)``; infinite where there is none yet.
    """

    images: Tensor
    sizes: Tensor

    @classmethod
    def to(cls, images: Tensor) -> Nearest:
        """None yet."""
        return cls(images.clone(), torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device))

    def offer(self, left: Survivors, images: Tensor, sizes: Tensor, fooled: Tensor) -> Tensor:
        """Keep the images that fool the model and are nearer than what there is.

        Args:
            left: The samples in question.
            images: Shape ``(M, C, H, W)``.
            sizes: Shape ``(M,)``.
            fooled: Whether they fool the model, bool, shape ``(M,)``.

        Returns:
            Which were kept, bool, shape ``(M,)``.
        """
        better = fooled & (sizes < self.sizes[left.index])
        at = better.nonzero()[:, 0]
        rows = left.index[at]
        self.images.index_copy_(0, rows, images.index_select(0, at))
        self.sizes[rows] = sizes[at]
        return better


def size_of(change: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample's change, float64, shape ``(N,)``."""
    sizes: Tensor = torch.linalg.vector_norm(change.flatten(1), ORDERS[norm], dim=1, dtype=torch.float64)
    return sizes


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast a linear function with this gradient can change per unit of ``norm``, float64, shape ``(N,)``."""
    return size_of(gradient, _DUALS[norm])


def steepness(gradient: Tensor) -> Tensor:
    """L2 norm of each sample's gradient, of its type, shape ``(N,)``; 1 where there is none or it is not finite."""
    sizes = dual_size(gradient, "l2").to(gradient.dtype)
    return torch.where((sizes > 0) & sizes.isfinite(), sizes, 1.0)


def lead(left: Survivors) -> Gain:
    """The margin of scores that the attacker has yet to overcome: positive before, negative after.

    The true class's score minus the best other one, or the best other score minus the target's.
    """
    sign = 1 if left.targeted else -1
    return lambda scores: sign * margin(scores, left.labels)


def cosine(step: int, steps: int, last: float = 0.01) -> float:
    """Falls from 1 at step 0 along half a cosine to ``last`` at step ``steps``."""
    return last + (1 - last) * (1 + math.cos(math.pi * step / steps)) / 2


def hinge_open(fooled: Tensor, leads: Tensor, kappa: float) -> Tensor:
    """Whether ``max(lead + kappa, 0)`` still counts: until the prediction is wrong and the lead is -kappa or less."""
    return ~(fooled & (leads <= -kappa) if kappa else fooled)


def search_c(
    minimize: Callable[[Survivors, Tensor, Nearest], Tensor],
    left: Survivors,
    first: float,
    rounds: int,
    nearest: Nearest,
) -> None:
    """Look for the smallest c, the weight of fooling the model, at which an optimization succeeds, sample by sample.

    Ten times the last c until it succeeds, then bisection (Carlini and Wagner, 2017, section V.B).

    Args:
        minimize: From samples and c to whether each sample's image fooled the model; both shape ``(N,)``, for the whole
            batch. Offers what it finds to ``nearest``.
        left: The samples.
        first: The first c.
        rounds: How many values of c.
        nearest: The nearest images of the whole batch.
    """
    c = torch.full_like(nearest.sizes, first, dtype=left.images.dtype)
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
    for _ in range(rounds):
        succeeded = minimize(left, c, nearest)
        low, high = torch.where(succeeded, low, c), torch.where(succeeded, c, high)
        c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
