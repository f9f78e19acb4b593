"""Auto-PGD: projected gradient ascent that chooses its step sizes by itself, on several losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._apgd_state import Ascent, HalvingAscent
from robbench.attacks._gradients import score_gradient, succeeded
from robbench.attacks._l1_ascent import SparseAscent
from robbench.attacks._losses import Loss, gain, gain_towards
from robbench.attacks._projections import uniform_in_ball
from robbench.core.contracts import Attack, Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Threat

Objective: TypeAlias = Callable[[Tensor], Tensor]


@register_attack("apgd-t", norms=("linf", "l2", "l1"), brief="Auto-PGD, DLR loss, 9 targets", loss="dlr", targets=9)
@register_attack("apgd-dlr", norms=("linf", "l2", "l1"), brief="Auto-PGD, DLR loss", loss="dlr")
@register_attack("apgd", norms=("linf", "l2", "l1"), brief="Auto-PGD, cross-entropy")
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020, algorithm 1).

    In L1 it is the sparse form with larger balls first (Croce and Hein, "Mind the box", ICML 2021). Each sample has
    step sizes and checkpoints of its own. Starts are random. Returned is an image that fools the model if one was met,
    otherwise the one of the highest loss.
    Costs at most ``steps + 1`` forward and ``steps`` backward passes, times restarts and targets; with targets one
    forward pass more.

    Attributes:
        loss: What is raised: ``ce``, cross-entropy; ``margin``, the best other score minus that of the true class;
            ``dlr``, this margin as a ratio that the scale of the scores does not change. The ratio needs three classes,
            with targets four; where there are fewer, the margin stands in its place.
        steps: Steps per run.
        restarts: How often to start anew.
        targets: How many other classes to make for, one after the other, those with the highest scores on the given
            image first; 0 to make away from the true class instead.
        early_stop: Whether a sample leaves at the first iterate that fools the model; otherwise the fooling image of
            the highest loss is looked for, as always where decisions are drawn: one lucky draw would not last.
    """

    loss: Loss = "ce"
    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=0)] = 0
    early_stop: bool = True

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True

    @property
    def margin_loss(self) -> bool:  # type: ignore[override]
        """Whether the loss is one of margins."""
        return self.loss != "ce"

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The best images found."""
        found, stops = _Found.of(images), self.early_stop and not model.votes
        goals = self._goals(model, images, labels, found)
        for restart in range(self.restarts):
            for rank, goal in enumerate(goals.unbind(dim=1) if self.targets else (None,)):
                index = (~found.fooled if stops else torch.ones_like(found.fooled)).nonzero().flatten()
                if len(index) == 0:
                    return found.images
                ascent = self._begin(images[index], threat, rng[index], ("start", restart, rank))
                self._climb(model, ascent, index, labels, goal, threat, found)
        return found.images

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Targets of its own next to a target that is given."""
        if threat.targeted and self.targets:
            return "apgd chooses targets by itself only to leave the true class; give targets=0 where a target is given"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate of a run; one to rank the targets."""
        goals = min(self.targets, num_classes - 1)
        runs = self.restarts * max(goals, 1)
        return (goals > 0) + runs * (self.steps + 1), runs * self.steps

    def _goals(self, model: Classifier, images: Tensor, labels: Tensor, found: _Found) -> Tensor:
        """The classes to make for, int64, shape ``(N, targets)``."""
        if not self.targets:
            return labels.new_empty(len(labels), 0)
        with torch.no_grad():
            scores, decisions = model.decide(images)
        found.fooled |= decisions != labels
        others = scores.scatter(1, labels[:, None], -torch.inf)
        return others.argsort(dim=1, descending=True, stable=True)[:, : min(self.targets, scores.shape[1] - 1)]

    def _begin(self, images: Tensor, threat: Threat, rng: Streams, draw: Draw) -> Ascent:
        change = uniform_in_ball(rng, draw, images, threat.norm, threat.radius)
        if threat.norm == "l1":
            return SparseAscent.begin(images, change, threat.radius, self.steps)
        return HalvingAscent.begin(images, change, threat.norm, threat.radius, self.steps)

    def _climb(
        self,
        model: Classifier,
        ascent: Ascent,
        index: Tensor,
        labels: Tensor,
        goal: Tensor | None,
        threat: Threat,
        found: _Found,
    ) -> None:
        for step in range(self.steps + 1):
            view, wanted = model.subset(index), labels[index]
            if goal is None:
                objective = gain(self.loss, wanted, threat.targeted)
            else:
                objective = gain_towards(self.loss, wanted, goal[index])
            gradient, value, decisions = _look(view, ascent.proposal, objective, last=step == self.steps)
            if ascent.allowed:
                hit = succeeded(decisions, wanted, threat.targeted)
                found.offer(index, ascent.proposal, value, hit)
                if self.early_stop and not model.votes:
                    index, ascent, gradient, value = index[~hit], ascent[~hit], gradient[~hit], value[~hit]
            if len(index) == 0 or step == self.steps:
                return
            ascent = ascent.tell(value, gradient)


@dataclass
class _Found:
    """The best images so far: those that fool the model before others, then by value."""

    images: Tensor
    value: Tensor
    fooled: Tensor

    @classmethod
    def of(cls, images: Tensor) -> _Found:
        value = images.new_full((len(images),), -torch.inf)
        return cls(images.clone(), value, torch.zeros_like(value, dtype=torch.bool))

    def offer(self, index: Tensor, images: Tensor, value: Tensor, fooled: Tensor) -> None:
        before = self.fooled[index]
        better = (fooled & ~before) | ((fooled == before) & (value > self.value[index]))
        rows = index[better]
        self.images[rows], self.value[rows], self.fooled[rows] = images[better], value[better], fooled[better]


def _look(model: Classifier, images: Tensor, objective: Objective, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not last:
        gradient, value, decisions = score_gradient(model, images, objective)
        return gradient, value.to(images.dtype), decisions
    # Nothing follows the gradient at the last point.
    with torch.no_grad():
        scores, decisions = model.decide(images)
    return torch.zeros_like(images), objective(scores).to(images.dtype), decisions
