"""Projected gradient descent: fast gradient steps, each projected back into the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._projected_ascent import keep_last, projected_ascent
from robbench.attacks._projections import project, uniform_in_ball
from robbench.attacks._survivors import Kept, Survivors
from robbench.core.contracts import Attack, Classifier, Loss
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("pgd", norms=("linf", "l2", "l1"), brief="Projected gradient descent")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent on cross-entropy (Madry et al., "Towards deep learning models", 2018).

    A sample that is fooled at any iterate stays fooled: the latest such iterate is returned, otherwise the last one.
    Confident scores stop it: in float32, cross-entropy has no gradient where they lie more than about 100 apart. The
    audit flags that, and ``apgd-margin`` goes on there.
    Costs at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes.

    Attributes:
        steps: Steps per restart.
        rel_step: Size of a step as a share of eps; ``2.5 / steps`` where it is None, which lets a start at any point of
            the ball reach any other.
        random_start: Whether to start uniformly inside the ball rather than at the image.
        restarts: How often to start anew; only samples that are not fooled yet take part, unless ``early_stop`` is off.
        early_stop: Whether a sample leaves the batch at the first iterate that fools the model, unless its predictions
            are drawn at random.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    rel_step: Annotated[float, Field(gt=0)] | None = None
    random_start: bool = True
    restarts: Annotated[int, Field(ge=1)] = 1
    early_stop: bool = True

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The latest iterates that fool the model, or the last ones."""
        kept, everyone = Kept.of(images), Survivors.of(model, images, labels, threat, rng)
        alpha = threat.radius * (2.5 / self.steps if self.rel_step is None else self.rel_step)
        # Where predictions are drawn, the first that is wrong may be a lucky one.
        stops = self.early_stop and not model.votes
        for restart in range(self.restarts):
            left, x_0 = everyone, self._start(images, threat, rng, restart)
            if stops:
                left, x_0 = everyone[~kept.fooled], x_0[~kept.fooled]
            left, x_t = projected_ascent(left, x_0, threat, alpha, self.steps, stops, kept)
            # The last iterate is returned, whether or not it fools, unless another one has fooled or may still do so.
            more = restart < self.restarts - 1
            keep_last(left, x_t, kept, asked=kept.fooled[left.index] | more)
        return kept.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate of a restart."""
        return self.restarts * (self.steps + 1), self.restarts * self.steps

    def _start(self, images: Tensor, threat: Threat, rng: Streams, restart: int) -> Tensor:
        if not self.random_start:
            return images
        change = uniform_in_ball(rng, ("start", restart), images, threat.norm, threat.radius)
        return project(images, change, threat.norm, threat.radius)
