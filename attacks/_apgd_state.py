"""Ascent with a step size of its own for every sample, told the values at the points that it proposes."""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from robbench.attacks._gradients import steepest_step
from robbench.attacks._projections import per_sample, project
from robbench.core.threat_model import Norm

_MOMENTUM = 0.75
_RISES = 0.75


@dataclass(frozen=True)
class Rows:
    """Tensors with one row per sample, next to what all samples share."""

    def __getitem__(self, index: Tensor) -> Self:
        """Some of the samples, by a mask or indices."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: row[index] for name, row in rows.items() if isinstance(row, Tensor | Rows)})


@dataclass(frozen=True)
class Point(Rows):
    """Where samples are and what is known there.

    Attributes:
        images: Shape ``(N, C, H, W)``.
        gradient: Of the value, same shape.
        value: What is to be raised, shape ``(N,)``.
    """

    images: Tensor
    gradient: Tensor
    value: Tensor

    def where(self, mask: Tensor, other: Point) -> Point:
        """These points where the mask ``(N,)`` holds, otherwise the other ones."""
        wide = per_sample(mask, self.images)
        return Point(
            torch.where(wide, self.images, other.images),
            torch.where(wide, self.gradient, other.gradient),
            torch.where(mask, self.value, other.value),
        )

    @classmethod
    def unknown(cls, images: Tensor) -> Point:
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
    best: Point
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
            best=Point.unknown(start),
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
        here = Point(self.proposal, gradient, value)
        best = here.where(value > self.best.value, self.best)
        size, rises = self.size, self.rises + (value > self.last)
        halved, reference = self.halved, self.reference
        marks = checkpoints(self.steps)
        if self.told in marks:
            window = self.told - max((mark for mark in marks if mark < self.told), default=0)
            stuck = ~halved & (best.value <= reference)
            halved, reference = (rises < _RISES * window) | stuck, best.value
            size, rises = torch.where(halved, size / 2, size), torch.zeros_like(rises)
            here = best.where(halved, here)
        change = here.images - self.center
        step = per_sample(size, change) * steepest_step(here.images, here.gradient, self.norm, 1.0)
        ahead = project(self.center, change + step, self.norm, self.eps)
        if self.told > 0:
            pull = _MOMENTUM * (ahead - here.images) + (1 - _MOMENTUM) * (here.images - self.previous)
            ahead = project(self.center, change + pull, self.norm, self.eps)
        return replace(
            self,
            proposal=ahead,
            best=best,
            size=size,
            told=self.told + 1,
            previous=here.images,
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
