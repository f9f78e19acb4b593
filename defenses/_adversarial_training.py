"""The shared parts of adversarial training: attacks inside the step, and what is made of their examples."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.attacks._gradients import input_gradient, steepest_step
from robbench.attacks._projections import project, uniform_in_ball
from robbench.core.contracts import Defense
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat, asked_threat
from robbench.core.training_step import Batch, Mode


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Training on images that are attacked anew in every step.

    Attributes:
        eps: Largest change; the data set's reference in Linf where it is None.
        norm: Norm in which it is measured.
        eps_warmup: Share of training over which eps grows linearly from 0.
        mode: How attacks see the network: as it trains, with statistics of the batch (``train``), or as it will predict
            (``eval``). They move no statistics either way.
    """

    eps: Annotated[float, Field(gt=0)] | None = None
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps_warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    mode: Mode = "train"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            RequestError: If one does not fit, or another norm than Linf comes without an eps.
        """
        super().__post_init__()
        try:
            asked_threat(self.norm, self.eps)
        except ValueError as error:
            raise RequestError(f"eps = {self.eps}: {error}") from None
        if self.norm != "linf" and self.eps is None:
            raise RequestError(f"norm = {self.norm!r} needs an eps: the data set's reference is one in Linf")

    def size(self, reference: float) -> float:
        """Eps at its largest, given the data set's reference."""
        return reference if self.eps is None else self.eps

    def radius(self, batch: Batch) -> float:
        """Eps at this step."""
        grown = 1.0 if batch.progress >= self.eps_warmup else batch.progress / self.eps_warmup
        return grown * self.size(batch.eps)

    def drawn(self, batch: Batch, size: float) -> Tensor:
        """Changes drawn uniformly from the ball of a radius."""
        return uniform_in_ball(batch.rng, "start", batch.images, self.norm, size)

    def moved(self, batch: Batch, change: Tensor) -> Tensor:
        """The images moved by a change, within the ball and [0, 1]."""
        return project(batch.images, change, self.norm, self.radius(batch))

    def steepest(self, batch: Batch, images: Tensor, size: float) -> Tensor:
        """The step of a size along which the attack's loss rises most at images made from the batch's."""
        gradient = input_gradient(lambda changed: batch.attack_loss(changed, batch.images, self.mode), images)
        return steepest_step(images, gradient, self.norm, size)


@dataclass(frozen=True)
class ExampleTraining(AdversarialTraining):
    """The loss on adversarial examples, mixed with that on clean images.

    Attributes:
        alpha: Share of the loss on clean images.
    """

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0

    by_sample: ClassVar[bool] = True

    @abc.abstractmethod
    def examples(self, batch: Batch) -> Tensor:
        """The images under attack."""

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of one step, and of the clean images where they have a share."""
        added = 2 if self.alpha else 1
        return added, added

    def training_loss(self, batch: Batch) -> Tensor:
        """The mixed loss, a scalar; no gradient flows through the attack."""
        attacked = batch.loss(self.examples(batch))
        return attacked if self.alpha == 0 else self.alpha * batch.loss(batch.images) + (1 - self.alpha) * attacked


@dataclass(frozen=True)
class SingleStepTraining(ExampleTraining):
    """Training on examples of one step, with a guard against catastrophic overfitting.

    Under single steps, robustness to several steps can be lost within an epoch (Wong et al., "Fast is better than
    free", 2020, section 5.4).

    Attributes:
        guard: Fall of robust accuracy, below its best so far, at which training stops and keeps the most robust epoch;
            0 for no guard, and no passes to watch it.
    """

    guard: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def watched(self, eps: float) -> Threat | None:
        """The limits that it trains under, where it is guarded."""
        return Threat(self.norm, self.size(eps)) if self.guard else None

    def stop(self, robust_accuracies: Sequence[float]) -> str | None:
        """Whether robust accuracy fell."""
        best, now = max(robust_accuracies, default=0.0), robust_accuracies[-1] if robust_accuracies else 0.0
        if self.guard and best - now > self.guard:
            return f"catastrophic overfitting: robust accuracy fell from {best:.1%} to {now:.1%}"
        return None


@dataclass(frozen=True)
class IteratedTraining(AdversarialTraining):
    """Training on examples of projected gradient ascent.

    Attributes:
        steps: Steps of the attack.
        rel_step: Size of a step as a share of eps.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    rel_step: Annotated[float, Field(gt=0)] = 0.25

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the steps."""
        return self.steps, self.steps

    def ascended(self, batch: Batch, start: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images after the attack's steps.

        Args:
            batch: The step.
            start: The change that the attack starts from.
            loss: What rises, from images to a scalar; the attack's loss where it is None.
        """
        raised = loss or (lambda changed: batch.attack_loss(changed, batch.images, self.mode))
        images = self.moved(batch, start)
        for _ in range(self.steps):
            step = steepest_step(images, input_gradient(raised, images), self.norm, self.rel_step * self.radius(batch))
            images = self.moved(batch, images - batch.images + step)
        return images

    def nudged(self, batch: Batch) -> Tensor:
        """Changes of 0.001 standard deviations, where a divergence from clean scores has a gradient."""
        noise = batch.rng.normal("start", tuple(batch.images.shape[1:]), dtype=batch.images.dtype)
        return 0.001 * noise


def divergences(scores: Tensor, clean: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the distribution by ``scores`` from that by ``clean``, shape ``(N,)``."""
    logs = scores.log_softmax(dim=1), clean.log_softmax(dim=1)
    return functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=1)
