"""Projected gradient descent: fast gradient steps, each projected back into the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import cross_entropy_gain, score_gradient, steepest_step, succeeded
from robbench.attacks._projections import per_sample, project, uniform_in_ball
from robbench.core.contracts import Attack, Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("pgd", norms=("linf", "l2", "l1"), brief="Projected gradient descent")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent on cross-entropy (Madry et al., "Towards deep learning models", 2018).

    A sample that is fooled at any iterate stays fooled: the latest such iterate is returned, otherwise the last one.
    Costs at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes.

    Attributes:
        steps: Steps per restart.
        rel_step: Size of a step as a share of eps; ``2.5 / steps`` where it is None, which lets a start at any point of
            the ball reach any other.
        random_start: Whether to start uniformly inside the ball rather than at the image.
        restarts: How often to start anew; only samples that are not fooled yet take part, unless ``early_stop`` is off.
        early_stop: Whether a sample leaves the batch at the first iterate that fools the model, unless its decisions
            are drawn at random.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    rel_step: Annotated[float, Field(gt=0)] | None = None
    random_start: bool = True
    restarts: Annotated[int, Field(ge=1)] = 1
    early_stop: bool = True

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The latest iterates that fool the model, or the last ones."""
        norm, eps, targeted = threat.norm, threat.radius, threat.targeted
        size = eps * (2.5 / self.steps if self.rel_step is None else self.rel_step)
        best = current = images.clone()
        fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        # Where decisions are drawn, the first that is wrong may be a lucky one.
        stops = self.early_stop and not model.votes
        for restart in range(self.restarts):
            current = self._start(images, threat, rng, restart)
            active = (~fooled if stops else torch.ones_like(fooled)).nonzero().flatten()
            for _ in range(self.steps):
                if len(active) == 0:
                    break
                gain = cross_entropy_gain(labels[active], targeted)
                gradient, _, decisions = score_gradient(model.subset(active), current[active], gain)
                hit = succeeded(decisions, labels[active], targeted)
                best[active[hit]], fooled[active[hit]] = current[active[hit]], True
                if stops:
                    active, gradient = active[~hit], gradient[~hit]
                center, here = images[active], current[active]
                step = steepest_step(here, gradient, norm, size)
                current[active] = project(center, here - center + step, norm, eps)
            # The very last iterate of a sample that nothing has fooled is returned whether or not it fools.
            asked = active if restart < self.restarts - 1 else active[fooled[active]]
            if len(asked):
                with torch.no_grad():
                    decisions = model.subset(asked).predict(current[asked])
                hit = asked[succeeded(decisions, labels[asked], targeted)]
                best[hit], fooled[hit] = current[hit], True
        return torch.where(per_sample(fooled, images), best, current)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate of a restart."""
        return self.restarts * (self.steps + 1), self.restarts * self.steps

    def _start(self, images: Tensor, threat: Threat, rng: Streams, restart: int) -> Tensor:
        if not self.random_start:
            return images.clone()
        change = uniform_in_ball(rng, ("start", restart), images, threat.norm, threat.radius)
        return project(images, change, threat.norm, threat.radius)
