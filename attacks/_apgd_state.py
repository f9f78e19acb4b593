"""The state of Auto-PGD: it proposes points and is told value and gradient there, with step sizes per sample."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robbench.attacks._gradients import steepest_step
from robbench.attacks._projections import per_sample, project, project_l1_box
from robbench.attacks._survivors import Rows
from robbench.core.threat_model import Norm

_ALPHA = 0.75
_RHO = 0.75
_RADII = (3.0, 2.0, 1.0)
_SHARES = (30, 30, 40)
_SPARSER = 1.5
_SHORTER = 1.5
_SHORTEST = 0.1
_SETTLED = 0.95
_CHECKED_EVERY = 4


@dataclass(frozen=True)
class Iterate(Rows):
    """Where samples are and what is known there.

    Attributes:
        images: Shape ``(N, C, H, W)``.
        gradient: Of the value, same shape.
        value: What is to be raised, shape ``(N,)``.
    """

    images: Tensor
    gradient: Tensor
    value: Tensor

    def where(self, mask: Tensor, other: Iterate) -> Iterate:
        """These points where the mask ``(N,)`` holds, otherwise the other ones."""
        wide = per_sample(mask, self.images)
        return Iterate(
            torch.where(wide, self.images, other.images),
            torch.where(wide, self.gradient, other.gradient),
            torch.where(mask, self.value, other.value),
        )

    @classmethod
    def unknown(cls, images: Tensor) -> Iterate:
        """Points about which nothing is known, worse than any other."""
        return cls(images, torch.zeros_like(images), images.new_full((len(images),), -torch.inf))


@dataclass(frozen=True)
class Ascent(Rows, abc.ABC):
    """The state of a search for the highest value in the balls around some images.

    Attributes:
        center: Centers of the balls, shape ``(N, C, H, W)``.
        proposal: Where to look next, same shape, inside [0, 1].
        best: The best of the points told, as far as the search still cares for them.
        size: Length of a step, shape ``(N,)``.
        eps: Radius of the balls.
        steps: How many points will be told.
        told: How many have been.
    """

    center: Tensor
    proposal: Tensor
    best: Iterate
    size: Tensor
    eps: float
    steps: int
    told: int

    @property
    def allowed(self) -> bool:
        """Whether the proposal lies inside the balls."""
        return True

    @abc.abstractmethod
    def tell(self, value: Tensor, gradient: Tensor) -> Self:
        """The search after it has learned the value ``(N,)`` and its gradient at the proposal."""


@dataclass(frozen=True)
class HalvingAscent(Ascent):
    """Gradient steps with momentum that are halved where they no longer lead up, in Linf and L2.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020, algorithm 1. At checkpoints that come ever closer, a sample's steps are halved and it goes back to its best
    point if (1) less than three quarters of the steps since the last checkpoint were upwards, or (2) its steps were not
    halved there and its best value has not risen since.

    Attributes:
        previous: The iterate before the proposal.
        last: Value at that iterate, shape ``(N,)``.
        rises: Steps upwards since the last checkpoint, shape ``(N,)``.
        halved: Whether the steps were halved there, shape ``(N,)``.
        reference: The best value there, shape ``(N,)``.
        norm: ``linf`` or ``l2``.
    """

    previous: Tensor
    last: Tensor
    rises: Tensor
    halved: Tensor
    reference: Tensor
    norm: Norm

    @classmethod
    def begin(cls, center: Tensor, change: Tensor, norm: Norm, eps: float, steps: int) -> HalvingAscent:
        """A search that starts with a change drawn from the ball; its first steps can cross the ball."""
        start, ones = project(center, change, norm, eps), center.new_ones(len(center))
        return cls(
            center=center,
            proposal=start,
            best=Iterate.unknown(start),
            size=2 * eps * ones,
            eps=eps,
            steps=steps,
            told=0,
            previous=start,
            last=torch.inf * ones,
            rises=0 * ones,
            halved=ones < 0,
            reference=-torch.inf * ones,
            norm=norm,
        )

    def tell(self, value: Tensor, gradient: Tensor) -> HalvingAscent:
        """The search one step further."""
        here = Iterate(self.proposal, gradient, value)
        best = here.where(value > self.best.value, self.best)
        size, rises = self.size, self.rises + (value > self.last)
        halved, reference = self.halved, self.reference
        marks = checkpoints(self.steps)
        if self.told in marks:
            window = self.told - max((mark for mark in marks if mark < self.told), default=0)
            stuck = ~halved & (best.value <= reference)
            halved, reference = (rises < _RHO * window) | stuck, best.value
            size, rises = torch.where(halved, size / 2, size), torch.zeros_like(rises)
            here = best.where(halved, here)
        x, delta = here.images, here.images - self.center
        eta = steepest_step(x, here.gradient, self.norm, per_sample(size, x))
        x_next = z = project(self.center, eta.add_(delta), self.norm, self.eps)
        if self.told > 0:
            pull = (z - x).mul_(_ALPHA).add_((x - self.previous).mul_(1 - _ALPHA))
            x_next = project(self.center, pull.add_(delta), self.norm, self.eps)
        return replace(
            self,
            proposal=x_next,
            best=best,
            size=size,
            told=self.told + 1,
            previous=x,
            last=here.value,
            rises=rises,
            halved=halved,
            reference=reference,
        )


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps at which progress is judged, from 0 on (Croce and Hein, 2020, section 3.1)."""
    # In hundredths of the steps, so that rounding up is exact.
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return tuple(sorted({-(-share * steps // 100) for share in shares if share <= 100}))


@dataclass(frozen=True)
class SparseAscent(Ascent):
    """Sparse steps with exact projections, first in balls three times and twice as large.

    Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021. Of the
    steps, 30, 30 and 40 % are taken in balls of 3, 2 and 1 eps; each but the first starts from the projection of the
    best point of the one before. At every check, the number of values that a step moves becomes two thirds of the
    number of values changed at the best point. Where that number still falls, steps become as long as the radius and go
    on from the best point; otherwise they become shorter by a third, down to a tenth of the radius.

    Attributes:
        changed: Values that differed from the image at the best point at the last check, shape ``(N,)``.
        values: How many values a step moves, shape ``(N,)``.
    """

    changed: Tensor
    values: Tensor

    @classmethod
    def begin(cls, center: Tensor, change: Tensor, eps: float, steps: int) -> SparseAscent:
        """A search that starts with a change drawn from the ball of radius ``eps``, scaled to the first balls."""
        factor, size = _RADII[_stage(0, steps)], center.flatten(1).shape[1]
        start, ones = project_l1_box(center, factor * change, factor * eps), center.new_ones(len(center))
        return cls(
            center=center,
            proposal=start,
            best=Iterate.unknown(start),
            size=factor * eps * ones,
            eps=eps,
            steps=steps,
            told=0,
            changed=size * ones,
            values=size / 5 * ones,
        )

    @property
    def allowed(self) -> bool:
        """Whether the last balls, those of eps, have been reached."""
        return _stage(self.told, self.steps) == len(_RADII) - 1

    def tell(self, value: Tensor, gradient: Tensor) -> SparseAscent:
        """The search one step further."""
        here = Iterate(self.proposal, gradient, value)
        best = here.where(value > self.best.value, self.best)
        following = replace(self, best=best, told=self.told + 1)
        stage, next_stage = _stage(self.told, self.steps), _stage(following.told, self.steps)
        radius = _RADII[next_stage] * self.eps
        if next_stage != stage:
            return following._narrowed(radius)
        size, changed, values = self.size, self.changed, self.values
        since = self.told - _starts(self.steps)[stage]
        every = max(_SHARES[stage] * self.steps * _CHECKED_EVERY // 10_000, 1)
        if since > 0 and since % every == 0:
            before, changed = changed, _changed(best.images, self.center)
            settled = changed >= _SETTLED * before
            size = torch.where(settled, (size / _SHORTER).clamp(min=_SHORTEST * radius), radius)
            values, here = changed / _SPARSER, here.where(settled, best)
        step = per_sample(size, gradient) * sparse_step(here.gradient, values)
        proposal = project_l1_box(self.center, here.images - self.center + step, radius)
        return replace(following, proposal=proposal, size=size, changed=changed, values=values)

    def _narrowed(self, radius: float) -> SparseAscent:
        proposal = project_l1_box(self.center, self.best.images - self.center, radius)
        changed = _changed(proposal, self.center)
        size = torch.full_like(self.size, radius)
        return replace(
            self,
            proposal=proposal,
            best=Iterate.unknown(proposal),
            size=size,
            changed=changed,
            values=changed / _SPARSER,
        )


def _starts(steps: int) -> tuple[int, ...]:
    return tuple(sum(_SHARES[:stage]) * steps // 100 for stage in range(len(_SHARES)))


def _stage(told: int, steps: int) -> int:
    return max(stage for stage, start in enumerate(_starts(steps)) if start <= told)


def _changed(images: Tensor, center: Tensor) -> Tensor:
    return (images != center).flatten(1).sum(dim=1).to(images.dtype)


def sparse_step(gradient: Tensor, values: Tensor) -> Tensor:
    """A step of L1 norm 1 spread evenly over the values with the largest gradients, along their signs.

    Args:
        gradient: Shape ``(N, ...)``; values with none take no part.
        values: How many values move, shape ``(N,)``; rounded down, but at least one.
    """
    flat = gradient.flatten(1)
    ranks = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    signs = torch.where(ranks < values[:, None].floor().clamp(min=1), flat.sign(), 0)
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1)).reshape(gradient.shape)
