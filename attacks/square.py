"""Square: random search with square patches, without gradients."""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._projections import add, project_l1_box
from robbench.attacks._survivors import Kept, Rows, Survivors, staying
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

# After these queries the share that a square covers is halved (section 5 of the paper). As in AutoAttack, they do not
# depend on how many queries there will be.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers are drawn for this many queries at once.
BLOCK = 64
# Taken off the radius, so that sums of rounded numbers stay below it.
SLACK = 1e-6


@register_attack("square", norms=("linf", "l2", "l1"), brief="Random search with patches")
@dataclass(frozen=True)
class Square(ContinuingAttack):
    """Square Attack: random search with patches (Andriushchenko et al., ECCV 2020; L1: Croce and Hein, ICML 2021).

    Every query changes a square at a random place, and the change is kept where it makes the scores worse. In Linf the
    square takes new signs, one per color, of a change of full size (algorithms 1 and 2), from a start of vertical
    stripes. In L2 it takes a pair of bumps of opposite signs, in the direction of what is there already, with the norm
    of that, of what is unused, and of a second square that is cleared (algorithm 3), from a start of 5 × 5 such pairs;
    in L1 the same with L1 norms and steeper bumps, larger than the ball and projected onto its part in the box. A
    sample leaves at the first query that fools the model; otherwise the image with the worst scores is returned. A
    longer search goes on where a shorter one ends. Costs at most ``queries`` forward passes.

    Attributes:
        queries: Queries per sample, the start included.
        p_init: The share of the image that the first squares cover.
        loss: What is to rise: the ``margin`` of the scores, or cross-entropy, ``ce``.
        surrogate: The name of one of the model's other scores to follow, or None for its usual ones. Success is by the
            hard prediction all the same.
    """

    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    loss: Literal["margin", "ce"] = "margin"
    surrogate: str | None = None

    targetable: ClassVar[bool] = True
    black_box: ClassVar[bool] = True

    @property
    def losses(self) -> tuple[Loss, ...]:  # type: ignore[override]
        """The loss."""
        return (self.loss,)

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The first images that fool the model, or those with the worst scores; where another attack ended it goes on.

        Raises:
            RequestError: If the model has no other scores of the name asked for.
        """
        left = replace(left, model=self._followed(left.model))
        images, rng = left.images, left.rng
        kept, patches = Kept.of(images, torch.float64), _PATCHES[threat.norm].around(images, threat)
        best, value = images.clone(), kept.value.clone()
        for query in range(self.queries):
            if not left:
                break
            side = _side(self._share(query), images, patches.least)
            if query % BLOCK == 0:
                draws = _SquareDraws.of(left.rng, query // BLOCK, images, side)
            if draws.side != side:
                draws = draws.placed(side, images)
            if query == 0:
                proposal = patches.start(rng) if start is None else start.images
            else:
                proposal = patches.propose(best.clone(), draws, query % BLOCK)
            values, fooled = left.look(proposal, left.gain(self.loss))
            at = (fooled | (values > value)).nonzero()[:, 0]
            if not len(at):
                continue
            best.index_copy_(0, at, proposal.index_select(0, at))
            value.index_copy_(0, at, values.index_select(0, at).double())
            if fooled.any():
                kept.offer(left, best, fooled, value)
                left, patches, draws, best, value = staying(~fooled, left, patches, draws, best, value)
        if left:
            kept.offer(left, best, torch.zeros_like(left.labels, dtype=torch.bool), value)
        return kept

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One forward pass per query."""
        return self.queries, 0

    def _followed(self, model: Classifier) -> Classifier:
        if self.surrogate is None:
            return model
        try:
            return model.surrogate(self.surrogate)
        except KeyError:
            hint = did_you_mean(self.surrogate, model.surrogates)
            raise RequestError(f'the model has no scores "{self.surrogate}"; {hint}', "square: surrogate") from None

    def _share(self, query: int) -> float:
        """The share of the image that the square of a query covers."""
        return math.ldexp(self.p_init, -sum(query > halving for halving in HALVINGS))


@dataclass(frozen=True)
class _SquareDraws(Rows):
    """Squares and signs of a block of queries.

    Attributes:
        places: Uniform in [0, 1), float64, shape ``(N, queries, 2, 2)``: down and right, for two squares.
        signs: -1 or 1, shape ``(N, queries, C)``.
        turned: bool, shape ``(N, queries)``.
        side: Height and width of the squares.
        corners: Their first pixels in flat images, int64, shape ``(N, queries, 2)``.
    """

    places: Tensor
    signs: Tensor
    turned: Tensor
    side: int
    corners: Tensor

    @classmethod
    def of(cls, rng: Streams, block: int, like: Tensor, side: int) -> _SquareDraws:
        """The squares of a block of queries, in images like those given."""
        places = rng.uniform(("places", block), (BLOCK, 2, 2), dtype=torch.float64)
        return cls(
            places,
            rng.signs(("signs", block), (BLOCK, like.shape[1]), dtype=like.dtype),
            rng.signs(("turned", block), (BLOCK,)) > 0,
            side,
            _corners(places, side, like),
        )

    def placed(self, side: int, like: Tensor) -> _SquareDraws:
        """The same with squares of another side."""
        return replace(self, side=side, corners=_corners(self.places, side, like))

    def square(self, query: int, number: int, like: Tensor) -> Tensor:
        """The pixels of one of a query's squares, as indices into ``(N, C, H * W)``, shape ``(N, 1, side * side)``."""
        return self.corners[:, query, number, None, None] + _cells(self.side, like.shape[3], like.device)


def _corners(places: Tensor, side: int, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    down, right = places.unbind(3)
    return (down * (height - side + 1)).long() * width + (right * (width - side + 1)).long()


@dataclass(frozen=True)
class _Patches(Rows, abc.ABC):
    """How images are changed in one norm.

    Attributes:
        least: Side of the smallest squares.
    """

    least: ClassVar[int]

    @classmethod
    @abc.abstractmethod
    def around(cls, images: Tensor, threat: Threat) -> _Patches:
        """Changes of these images."""

    @abc.abstractmethod
    def start(self, rng: Streams) -> Tensor:
        """The first images to look at."""

    @abc.abstractmethod
    def propose(self, current: Tensor, draws: _SquareDraws, query: int) -> Tensor:
        """Images that differ from the current ones, which may be written to, in the squares of a query of the block."""


@dataclass(frozen=True)
class _Signs(_Patches):
    """Linf: every value lies at one of the ends of what it may be.

    Attributes:
        ends: The lower ends of an image's values, then the upper ones, shape ``(N, C, 2, H, W)``.
    """

    ends: Tensor

    least: ClassVar[int] = 1

    @classmethod
    def around(cls, images: Tensor, threat: Threat) -> _Signs:
        eps = torch.full_like(images, threat.radius)
        return cls(torch.stack([add(images, -eps), add(images, eps)], dim=2))

    def start(self, rng: Streams) -> Tensor:
        _, channels, _, _, width = self.ends.shape
        lower, upper = self.ends.unbind(2)
        return torch.where(rng.signs("stripes", (channels, 1, width)) > 0, upper, lower)

    def propose(self, current: Tensor, draws: _SquareDraws, query: int) -> Tensor:
        flat, square = current.flatten(2), draws.square(query, 0, current)
        upper = (draws.signs[:, query] > 0) * flat.shape[2]
        new = self.ends.flatten(2).gather(2, square + upper[:, :, None])
        return flat.scatter_(2, square.expand_as(new), new).reshape(current.shape)


@dataclass(frozen=True)
class _Bumps(_Patches):
    """L2 and L1: a change that is moved about between squares.

    Attributes:
        images: The clean images, shape ``(N, C, H, W)``.
        order: Of the norm: 1 or 2.
        radius: Largest norm of the change.
    """

    images: Tensor
    order: int
    radius: float

    least: ClassVar[int] = 3

    @classmethod
    def around(cls, images: Tensor, threat: Threat) -> _Bumps:
        return cls(images, {"l2": 2, "l1": 1}[threat.norm], (1 - SLACK) * threat.radius)

    def start(self, rng: Streams) -> Tensor:
        _, channels, height, width = self.images.shape
        side = max(min(height, width) // 5, 1)
        down, right = height // side, width // side
        signs = rng.signs("tiles", (channels, down, right), dtype=self.images.dtype)
        turned = rng.signs("tiles turned", (1, down, right)) > 0
        tiles = signs[..., None, None] * self._pairs(turned, side)
        change = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        above, before = (height - down * side) // 2, (width - right * side) // 2
        frame = (before, width - right * side - before, above, height - down * side - above)
        change = torch.nn.functional.pad(change, frame)
        change = change * (self.radius / self._norm(change.flatten(1))[:, :, None, None])
        return self._overfull(change * channels) if self.order == 1 else add(self.images, change)

    def propose(self, current: Tensor, draws: _SquareDraws, query: int) -> Tensor:
        channels = current.shape[1]
        first, second = (draws.square(query, number, current).expand(-1, channels, -1) for number in range(2))
        images, now = self.images.flatten(2), current.flatten(2)
        change = now - images
        own = change.gather(2, first)
        change = change.scatter_(2, first, 0)
        other = change.gather(2, second)
        change = change.scatter_(2, second, 0)
        power = self.order
        moved = self._norm(own) ** power + self._norm(other) ** power
        rest = self._norm(change.flatten(1))[..., None] ** power
        unused = (self.radius**power - rest - moved.sum(dim=1, keepdim=True)).clamp(min=0)
        available = (moved + unused / channels) ** (1 / power)
        pair = self._pairs(draws.turned[:, query], draws.side).flatten(1)[:, None]
        new = available * self._direction(draws.signs[:, query, :, None] * pair + self._direction(own))
        if self.order == 1:
            return self._overfull(change.scatter_(2, first, channels * new).reshape(current.shape))
        # Nothing but the two squares changes, and the box takes from the first what does not fit.
        cleared = now.scatter_(2, second, images.gather(2, second))
        return cleared.scatter_(2, first, add(images.gather(2, first), new)).reshape(current.shape)

    def _overfull(self, change: Tensor) -> Tensor:
        return project_l1_box(self.images, change, self.radius)

    def _pairs(self, turned: Tensor, side: int) -> Tensor:
        pair = _pair(side, self.order).to(self.images)
        return torch.where(turned[..., None, None], pair.T, pair)

    def _norm(self, values: Tensor) -> Tensor:
        sizes: Tensor = torch.linalg.vector_norm(values, self.order, dim=-1, keepdim=True)
        return sizes

    def _direction(self, values: Tensor) -> Tensor:
        return values / self._norm(values).clamp(min=torch.finfo(values.dtype).tiny)


_PATCHES: dict[str, type[_Patches]] = {"linf": _Signs, "l2": _Bumps, "l1": _Bumps}


def _side(share: float, images: Tensor, least: int) -> int:
    """Side of the square that covers a share of images, as far as they are large enough; odd if at least three."""
    height, width = images.shape[2:]
    side = max(round(math.sqrt(share * height * width)), least)
    return min(side | 1 if least > 1 else side, height, width)


@functools.cache
def _cells(side: int, width: int, device: torch.device) -> Tensor:
    """Positions of a square's pixels from its first one on, in flat images, int64, shape ``(side * side,)``."""
    steps = torch.arange(side, device=device)
    return (steps[:, None] * width + steps).flatten()


@functools.cache
def _pair(side: int, order: int) -> Tensor:
    """A bump above the inverse of another one, of norm 1, float64, shape ``(side, side)`` (equation 3)."""
    upper = side // 2
    power = {2: 2, 1: 4}[order]
    pair = torch.cat([_bump(upper, side, power), -_bump(side - upper, side, power)])
    size: Tensor = torch.linalg.vector_norm(pair.flatten(), order)
    return pair / size


def _bump(height: int, width: int, power: int) -> Tensor:
    """Rings around the middle, ring j higher than the next one outside by ``1 / (j + 1)**power``."""
    down, right = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    rings = torch.maximum(down.abs()[:, None], right.abs())
    rise = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** power
    heights: Tensor = rise.flip(0).cumsum(0).flip(0)
    return heights[rings]
