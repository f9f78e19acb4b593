"""What attacks that look for the smallest change that fools a model have in common."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robbench.attacks._gradients import succeeded
from robbench.core.contracts import Attack, Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

_ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
_DUALS: dict[str, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True)
class MinimalNormAttack(Attack):
    """An attack that returns, for each sample, the smallest change that it saw fool the hard decision.

    The search follows the scores. Where the hard decision is another than their arg max, it is the decision that tells
    whether the search has arrived. Samples that are fooled as they are come back unchanged, and so do those for which
    nothing was found.
    """

    targetable: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    white_box: ClassVar[bool] = True
    margin_loss: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The nearest images found that fool the model, or the images themselves. Draws nothing."""
        with torch.no_grad():
            decisions = model.predict(images)
        standing = (~succeeded(decisions, labels, threat.targeted)).nonzero().flatten()
        found = images.clone()
        if len(standing):
            found[standing] = self.search(model.subset(standing), images[standing], labels[standing], threat)
        return found

    @abc.abstractmethod
    def search(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The nearest images found that fool the model, or the images themselves.

        Args:
            model: The model, as samples of this batch are to be charged.
            images: Images that do not fool it as they are, shape ``(N, C, H, W)``, at least one.
            labels: True classes or targets, shape ``(N,)``.
            threat: The norm to keep small, and whether labels are targets.
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

    def offer(self, index: Tensor, images: Tensor, sizes: Tensor, fooled: Tensor) -> None:
        """Keep the images that fool the model and are nearer than what there is.

        Args:
            index: Which samples the other arguments are about, int64, shape ``(M,)``.
            images: Shape ``(M, C, H, W)``.
            sizes: Shape ``(M,)``.
            fooled: bool, shape ``(M,)``.
        """
        better = fooled & (sizes < self.sizes[index])
        self.images[index[better]], self.sizes[index[better]] = images[better], sizes[better]


def size_of(change: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample's change, float64, shape ``(N,)``."""
    sizes: Tensor = torch.linalg.vector_norm(change.flatten(1), _ORDERS[norm], dim=1, dtype=torch.float64)
    return sizes


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast a linear function with this gradient can change per unit of ``norm``, float64, shape ``(N,)``."""
    return size_of(gradient, _DUALS[norm])


def lead(labels: Tensor, targeted: bool) -> Callable[[Tensor], Tensor]:
    """How far scores are from where the attacker wants them: positive before, negative after.

    The true class's score less the best other one, or the best other score less the target's.
    """

    def of(scores: Tensor) -> Tensor:
        own = scores.gather(1, labels[:, None]).squeeze(1)
        other = scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return other - own if targeted else own - other

    return of


def cosine(step: int, steps: int) -> float:
    """Falls from 1 at step 0 along half a cosine to a hundredth at step ``steps``."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2


def search_weight(arrives: Callable[[Tensor], Tensor], first: Tensor, rounds: int) -> None:
    """Look for the smallest weight of the aim of fooling at which an optimization arrives, for each sample by itself.

    Ten times the weight until it arrives, then bisection (Carlini and Wagner, 2017, section V.B).

    Args:
        arrives: From weights, shape ``(N,)``, to whether the optimization arrived, bool, shape ``(N,)``.
        first: The weights of the first round.
        rounds: How many rounds.
    """
    weight, low, high = first, torch.zeros_like(first), torch.full_like(first, torch.inf)
    for _ in range(rounds):
        arrived = arrives(weight)
        low, high = torch.where(arrived, low, weight), torch.where(arrived, weight, high)
        weight = torch.where(high.isinf(), 10 * weight, (low + high) / 2)
