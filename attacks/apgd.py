"""Auto-PGD: projected gradient ascent that chooses its step sizes by itself, on several losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._apgd_state import Ascent, HalvingAscent, SparseAscent
from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._expectation import Answer, drawing_apart, mean_over_draws
from robbench.attacks._losses import AnyLoss, Gain, audited, gain_towards, likeliest_others
from robbench.attacks._projections import uniform_in_ball
from robbench.attacks._survivors import Kept, Survivors, staying
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.component import OmittedAtDefault
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw
from robbench.core.threat_model import Threat


@register_attack("apgd-t", norms=("linf", "l2", "l1"), brief="Auto-PGD, DLR loss, 9 targets", loss="dlr", targets=9)
@register_attack("apgd-margin", norms=("linf", "l2", "l1"), brief="Auto-PGD, margin loss", loss="margin")
@register_attack("apgd-dlr", norms=("linf", "l2", "l1"), brief="Auto-PGD, DLR loss", loss="dlr")
@register_attack("apgd", norms=("linf", "l2", "l1"), brief="Auto-PGD, cross-entropy")
@dataclass(frozen=True)
class APGD(ContinuingAttack):
    """Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020, algorithm 1).

    In L1 it is the sparse form with larger balls first (Croce and Hein, "Mind the box", ICML 2021). Each sample has
    step sizes and checkpoints of its own. Starts are random. Returned is an image that fools the model if one was met,
    otherwise the one of the highest loss.
    Costs at most ``steps + 1`` forward and ``steps`` backward passes, times restarts, targets and ``eot``; with targets
    one forward pass more.

    Attributes:
        loss: What is raised: ``ce``, cross-entropy, which has no gradient on confident scores; ``margin``, the best
            other score minus that of the true class; ``soft-margin``, the same with the logarithm of the sum of the
            others' exponentials, in the direction of cross-entropy however confident; ``dlr``, the margin as a ratio
            that the scale of the scores does not change. The ratio needs three classes, with targets four; where there
            are fewer, the margin stands in its place.
        steps: Steps per run.
        restarts: How often to start anew.
        targets: How many other classes to make for, one after the other, those with the highest scores on the given
            image first; 0 to make away from the true class instead.
        early_stop: Whether a sample leaves at the first iterate that fools the model; otherwise the fooling image of
            the highest loss is looked for, as always where predictions are drawn: one lucky draw would not last.
        eot: Draws of a random model that gradients, losses and predictions are averaged over in every step; what fools
            it in most of them counts as fooling it. One that averages by itself is asked accordingly less often. On a
            model that draws nothing more than 1 is wasted.
    """

    loss: AnyLoss = "ce"
    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=0)] = 0
    early_stop: bool = True
    eot: Annotated[int, Field(ge=1), OmittedAtDefault] = 1

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True

    @property
    def losses(self) -> tuple[Loss, ...]:  # type: ignore[override]
        """The loss, the margin for the soft one."""
        return (audited(self.loss),)

    @property
    def averaged_draws(self) -> int:
        """Draws that gradients are averaged over."""
        return self.eot

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The best images found; the first run starts where another attack ended, in L1 scaled to its first balls."""
        everyone = replace(left, model=drawing_apart(left.model)) if self.eot > 1 else left
        kept, stops = Kept.of(left.images), self.early_stop and not everyone.model.votes and self.eot == 1
        goals = self._goals(everyone, start, kept)
        for restart in range(self.restarts):
            for rank, goal in enumerate(goals):
                left = everyone[~kept.fooled] if stops else everyone
                if not left:
                    return kept
                ascent = self._begin(left, threat, start if restart == 0 else None, ("start", restart, rank))
                self._climb(left, None if goal is None else goal[left.index], ascent, stops, kept, (restart, rank))
        return kept

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Targets of its own next to a target that is given."""
        if threat.targeted and self.targets:
            return "apgd chooses targets by itself only to leave the true class; give targets=0 where a target is given"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate of a run; one to rank the targets."""
        goals = min(self.targets, num_classes - 1)
        runs = self.restarts * max(goals, 1)
        return (goals > 0) + self.eot * runs * (self.steps + 1), self.eot * runs * self.steps

    def _goals(self, everyone: Survivors, start: BestPoints | None, kept: Kept) -> Sequence[Tensor | None]:
        """The classes to make for in turn, int64, shape ``(N,)`` each; None for any but the label."""
        if not self.targets or everyone.targeted:
            return (None,)
        if start is not None:
            return likeliest_others(start.lead, everyone.labels, self.targets).unbind(dim=1)
        scores, decisions = everyone.decide(everyone.images)
        kept.offer(everyone, everyone.images, everyone.fooled(decisions))
        return likeliest_others(scores, everyone.labels, self.targets).unbind(dim=1)

    def _begin(self, left: Survivors, threat: Threat, start: BestPoints | None, draw: Draw) -> Ascent:
        if start is None:
            delta = uniform_in_ball(left.rng, draw, left.images, threat.norm, threat.radius)
        else:
            delta = start.images.index_select(0, left.index).sub_(left.images)
        if threat.norm == "l1":
            return SparseAscent.begin(left.images, delta, threat.radius, self.steps)
        return HalvingAscent.begin(left.images, delta, threat.norm, threat.radius, self.steps)

    def _climb(
        self, left: Survivors, goal: Tensor | None, ascent: Ascent, stops: bool, kept: Kept, run: tuple[int, int]
    ) -> None:
        """Ask the ascent for points, tell it the value and gradient there, and keep the best that lie in the ball."""
        for step in range(self.steps + 1):
            x = ascent.proposal
            objective = left.gain(self.loss) if goal is None else gain_towards(self.loss, left.labels, goal)
            # Nothing follows the gradient at the last point.
            g, value, fooled = self._answer(left, x, objective, step < self.steps, (*run, step))
            value = value.to(x.dtype)
            if ascent.allowed:
                kept.offer(left, x, fooled, value)
                if stops:
                    left, ascent, g, value, goal = staying(~fooled, left, ascent, g, value, goal)
            if not left or step == self.steps:
                return
            ascent = ascent.tell(value, g)

    def _answer(self, left: Survivors, x: Tensor, objective: Gain, ascends: bool, draw: Draw) -> Answer:
        """The gradient at ``x``, zero where it is not asked for, the values and what fools the model."""

        def question() -> Answer:
            return left.gradient(x, objective) if ascends else (torch.zeros_like(x), *left.look(x, objective))

        return question() if self.eot == 1 else mean_over_draws(left.model, self.eot, draw, question)
