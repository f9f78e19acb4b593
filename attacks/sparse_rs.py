"""Sparse random search: few pixels in extreme colors, found by asking for scores alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._survivors import Kept, Survivors, staying
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

_SCHEDULE = ((50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15), (10_000, 20))
"""Up to so many of 10,000 queries, ``alpha_init`` is divided by so much."""


@register_attack("sparse-rs", norms=("l0",), brief="Random search over pixels")
@dataclass(frozen=True)
class SparseRS(ContinuingAttack):
    """Sparse-RS in L0 (Croce et al., AAAI 2022): random search over sets of pixels and their colors.

    Here eps counts changed values, so ``eps // channels`` pixels are set, each to a corner of the color cube; where
    that is none, single values are set to 0 or 1. A query exchanges some of them for others in random colors, fewer as
    the search goes on; it is kept if it lowers the margin of the true class, or raises that of the target.
    Costs at most ``queries`` forward passes.

    Attributes:
        queries: Queries per sample (5,000 in the paper); the schedule of exchanges is stretched to fit.
        alpha_init: Share of the pixels that the first exchange concerns.
    """

    queries: Annotated[int, Field(ge=1)] = 1000
    alpha_init: Annotated[float, Field(gt=0, le=1)] = 0.3

    targetable: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The first images that fool the model, or those with the best margin; it always begins anew."""
        images, rng, channels = left.images, left.rng, left.images.shape[1]
        together = channels if threat.radius >= channels else 1
        # Spots are pixels, or single values; a spot's values stand in the last dimension.
        center = images.flatten(2).transpose(1, 2) if together == channels else images.flatten(1)[:, :, None]
        spots = center.shape[1]
        size = min(spots, int(min(threat.radius, spots * together)) // together)
        if size == 0 or len(images) == 0:
            return Kept.of(images)
        order = rng.subsets("spots", spots, spots)
        colors = rng.integers("colors", (spots, together), 2).to(images.dtype)
        kept = Kept.of(images)
        for query in range(self.queries):
            if not left:
                break
            tried_order, tried_colors = order, colors
            if query > 0:
                count = min(self._exchanged(query, size), size)
                tried_order = _exchange(order, left.rng, query, size, min(count, spots - size))
                # New spots, which come first, are colored anew, whatever colors they had when they were last in use.
                fresh = left.rng.integers(("colors", query), (count, together), 2).to(images.dtype)
                tried_colors = colors.scatter(1, _rows(tried_order[:, :count], together), fresh)
            used = _rows(tried_order[:, :size], together)
            moved = center.scatter(1, used, tried_colors.gather(1, used))
            tried = (moved.transpose(1, 2) if together == channels else moved).reshape(left.images.shape)
            margins, fooled = left.look(tried, left.gain("margin"))
            better = kept.offer(left, tried, fooled, margins)
            order[better], colors[better] = tried_order[better], tried_colors[better]
            left, center, order, colors = staying(~fooled, left, center, order, colors)
        return kept

    def passes(self, num_classes: int) -> tuple[int, int]:
        """A forward pass per query."""
        return self.queries, 0

    def _exchanged(self, query: int, size: int) -> int:
        progress = query * 10_000 / self.queries
        divisor = next(divisor for end, divisor in _SCHEDULE if progress <= end)
        return max(1, int(self.alpha_init / divisor * size))


def _exchange(order: Tensor, rng: Streams, query: int, size: int, count: int) -> Tensor:
    """Spots in order of use, ``size`` of them used, after ``count`` random ones gave way to unused ones put first."""
    spots = order.shape[1]
    if count == 0:
        return order.gather(1, rng.subsets(("order", query), spots, spots)) if size == spots else order
    inside = rng.subsets(("out", query), size, size)
    outside = size + rng.subsets(("in", query), spots - size, spots - size)
    parts = (outside[:, :count], inside[:, count:], inside[:, :count], outside[:, count:])
    return order.gather(1, torch.cat(parts, dim=1))


def _rows(index: Tensor, width: int) -> Tensor:
    return index[:, :, None].expand(-1, -1, width)
