"""Projected gradient descent: fast gradient steps, each projected back into the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._projected_ascent import keep_last, projected_ascent
from robbench.attacks._projections import project, uniform_in_ball
from robbench.attacks._survivors import Kept, Survivors
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat


@register_attack("pgd", norms=("linf", "l2", "l1"), brief="Projected gradient descent")
@dataclass(frozen=True)
class PGD(ContinuingAttack):
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

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The latest iterates that fool the model, or the last ones; the first run may go on from another attack's."""
        kept, everyone = Kept.of(left.images), left
        alpha = threat.radius * (2.5 / self.steps if self.rel_step is None else self.rel_step)
        # Where predictions are drawn, the first that is wrong may be a lucky one.
        stops = self.early_stop and not everyone.model.votes
        for restart in range(self.restarts):
            left, x_0 = everyone, self._start(everyone, threat, start, restart)
            if stops:
                left, x_0 = everyone[~kept.fooled], x_0[~kept.fooled]
            left, x_t = projected_ascent(left, x_0, threat, alpha, self.steps, stops, kept)
            # The last iterate is returned, whether or not it fools, unless another one has fooled or may still do so.
            more = restart < self.restarts - 1
            keep_last(left, x_t, kept, asked=kept.fooled[left.index] | more)
        return kept

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate of a restart."""
        return self.restarts * (self.steps + 1), self.restarts * self.steps

    def _start(self, everyone: Survivors, threat: Threat, start: BestPoints | None, restart: int) -> Tensor:
        images = everyone.images
        if start is not None and restart == 0:
            return start.images
        if not self.random_start:
            return images
        change = uniform_in_ball(everyone.rng, ("start", restart), images, threat.norm, threat.radius)
        return project(images, change, threat.norm, threat.radius)
