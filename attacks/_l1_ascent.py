"""The L1 ball within the box: exact projection, sparse steps, and the ascent made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robbench.attacks._apgd_state import Ascent, Point
from robbench.attacks._projections import add, per_sample

_RADII = (3.0, 2.0, 1.0)
_SHARES = (30, 30, 40)
_SPARSER = 1.5
_SHORTER = 1.5
_SHORTEST = 0.1
_SETTLED = 0.95
_CHECKED_EVERY = 4


def project_l1_box(images: Tensor, change: Tensor, eps: float) -> Tensor:
    """The nearest points to ``images + change`` that are in [0, 1] and within ``eps`` of the images in L1.

    Every value moves by ``|change| - t``, but not below zero nor further than the box has room, with one threshold t
    for the whole image that makes the moves sum to eps (Croce and Hein, "Mind the box", ICML 2021, section 2). The sum
    is piecewise linear in t, with kinks where a value starts to move and where it has no more room.

    Args:
        images: Floats in [0, 1], shape ``(N, ...)``.
        change: Same shape.
        eps: Radius.
    """
    if eps == 0:
        return images.clone()
    wanted = change.double().flatten(1)
    room = torch.where(wanted > 0, 1 - images.double().flatten(1), images.double().flatten(1))
    wanted, sign = wanted.abs(), wanted.sign()
    kinks = torch.cat([wanted, (wanted - room).clamp(min=0)], dim=1)
    # Going down from the largest kink, the number of values that move with t changes by one at each.
    kinks, order = kinks.sort(dim=1, descending=True)
    moving = torch.where(order < wanted.shape[1], 1.0, -1.0).to(kinks).cumsum(dim=1)
    moved = (moving[:, :-1] * (kinks[:, :-1] - kinks[:, 1:])).cumsum(dim=1)
    enough = moved >= eps
    at = enough.to(torch.int8).argmax(dim=1, keepdim=True)
    threshold = kinks.gather(1, at + 1) + (moved.gather(1, at) - eps) / moving.gather(1, at).clamp(min=1)
    threshold = torch.where(enough.any(dim=1, keepdim=True), threshold, 0.0)
    moves = torch.minimum((wanted - threshold).clamp(min=0), room)
    return add(images, (sign * moves).to(change.dtype).reshape(change.shape))


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
            best=Point.unknown(start),
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
        here = Point(self.proposal, gradient, value)
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
            best=Point.unknown(proposal),
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
