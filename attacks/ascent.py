"""Ascent on the margin in steps with momentum that become shorter, from wherever another attack ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._gradients import steepest_step
from robbench.attacks._losses import AnyLoss, audited, gain_towards, likeliest_others
from robbench.attacks._projections import add, keep_largest, l1_direction, per_sample, project, uniform_in_ball
from robbench.attacks._survivors import Kept, Survivors, staying
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw
from robbench.core.threat_model import Threat


@register_attack("ascent", norms=("linf", "l2", "l1", "l0"), brief="Momentum, shrinking steps")
@dataclass(frozen=True)
class MomentumAscent(ContinuingAttack):
    """Gradient ascent with momentum in steps that become shorter along half a cosine.

    ``m_{k+1} = momentum * m_k + g / ‖g‖₁`` and ``x_{k+1} = Π(x_k + rel_step * eps * (1 + cos(πk / steps)) / 2 * s(m))``
    for the gradient g of the loss and the steepest direction s in the norm: momentum as in MI-FGSM (Dong et al., 2018),
    steps as in the minimum-margin attack (Gao et al., "Fast and reliable evaluation of adversarial robustness with
    minimum-margin attack", ICML 2022). In L0 a step goes along m, scaled so that its largest value is ``rel_step`` of
    the range of pixels at first, and Π keeps the largest changes. A sample leaves at the first point that fools the
    model, unless its predictions are drawn; otherwise the point of the highest loss is returned.
    Costs ``steps + 1`` forward and ``steps`` backward passes, times targets; with targets and without another attack
    before it a forward pass more.

    Attributes:
        loss: What is raised, as in ``apgd``.
        steps: Steps per run.
        rel_step: Length of the first step as a share of eps.
        momentum: Weight of the directions so far at every step.
        targets: How many other classes to make for, one after the other, those that came nearest first; 0 to make away
            from the true class, as always where a target is given.
        start: ``best``, where the attack before it ended, which is the image where there was none; ``image``;
            ``corner``, a random corner of the ball in Linf, a random point of it in other norms.
    """

    loss: AnyLoss = "margin"
    steps: Annotated[int, Field(ge=1)] = 20
    rel_step: Annotated[float, Field(gt=0)] = 1.0
    momentum: Annotated[float, Field(ge=0)] = 0.75
    targets: Annotated[int, Field(ge=0)] = 0
    start: Literal["best", "image", "corner"] = "best"

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True

    @property
    def losses(self) -> tuple[Loss, ...]:  # type: ignore[override]
        """The loss, the margin for the soft one."""
        return (audited(self.loss),)

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The best points."""
        kept, everyone = Kept.of(left.images), left
        for number, goal in enumerate(self._goals(left, start)):
            left = everyone if left.model.votes else everyone[~kept.fooled]
            if not left:
                break
            x_0 = self._start(left, threat, start, ("corner", number))
            self._climb(left, x_0, None if goal is None else goal[left.index], threat, kept)
        return kept

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step and a forward pass on the last point of a run; one to rank the targets."""
        goals = min(self.targets, num_classes - 1)
        return (goals > 0) + max(goals, 1) * (self.steps + 1), max(goals, 1) * self.steps

    def _goals(self, left: Survivors, start: BestPoints | None) -> Iterator[Tensor | None]:
        """The classes to make for in turn, int64, shape ``(N,)`` each; None for any but the label."""
        if not self.targets or left.targeted:
            yield None
            return
        lead = left.decide(left.images)[0] if start is None else start.lead
        yield from likeliest_others(lead, left.labels, self.targets).unbind(dim=1)

    def _start(self, left: Survivors, threat: Threat, start: BestPoints | None, draw: Draw) -> Tensor:
        x = left.images
        if self.start == "corner":
            if threat.norm == "linf":
                return add(x, threat.radius * left.rng.signs(draw, tuple(x.shape[1:]), dtype=x.dtype))
            if threat.norm == "l0":
                return keep_largest(x, left.rng.uniform(draw, tuple(x.shape[1:]), -1, 1, x.dtype), threat.radius)
            return project(
                x, uniform_in_ball(left.rng, draw, x, threat.norm, threat.radius), threat.norm, threat.radius
            )
        return x if self.start == "image" or start is None else start.images.index_select(0, left.index)

    def _climb(self, left: Survivors, x_k: Tensor, goal: Tensor | None, threat: Threat, kept: Kept) -> None:
        m = torch.zeros_like(x_k)
        for k in range(self.steps + 1):
            objective = left.gain(self.loss) if goal is None else gain_towards(self.loss, left.labels, goal)
            if k == self.steps:
                value, fooled = left.look(x_k, objective)
                kept.offer(left, x_k, fooled, value)
                return
            g, value, fooled = left.gradient(x_k, objective)
            kept.offer(left, x_k, fooled, value)
            # Where a gradient is no number the others go on, and so does a sample along what it has.
            m.mul_(self.momentum).add_(l1_direction(g.nan_to_num(0, 0, 0)))
            if not left.model.votes:
                left, x_k, m, goal = staying(~fooled, left, x_k, m, goal)
                if not left:
                    return
            x_k = self._step(x_k, m, (1 + math.cos(math.pi * k / self.steps)) / 2, left.images, threat)

    def _step(self, x_k: Tensor, m: Tensor, share: float, images: Tensor, threat: Threat) -> Tensor:
        """The next point, a share of the first step's length further on."""
        if threat.norm == "l0":
            largest = m.flatten(1).abs().amax(dim=1)
            step = self.rel_step * share * m / per_sample(torch.where(largest > 0, largest, 1.0), m)
            return keep_largest(images, x_k - images + step, threat.radius)
        step = steepest_step(x_k, m, threat.norm, self.rel_step * share * threat.radius)
        return project(images, (x_k - images).add_(step), threat.norm, threat.radius)
