"""Balls around images: projecting a change onto them, and drawing starts uniformly inside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Norm

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shape ``(N,)``, made to broadcast against images ``(N, ...)``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def add(images: Tensor, change: Tensor) -> Tensor:
    """``images + change`` within [0, 1], rounded so that no value moves further than ``change`` says.

    Neither rounding towards the images nor clipping to a box that holds them makes any value of the change larger, so
    what lay inside a ball of any norm still does, exactly; a zero change gives the images to the last bit.

    Args:
        images: Floats in [0, 1], shape ``(N, ...)``.
        change: Same shape.
    """
    moved = images + change
    # What rounding took off the sum, exactly (Knuth's TwoSum); where it has the other sign, the sum lies too far out.
    seen = moved - images
    lost = moved - seen
    torch.sub(images, lost, out=lost)
    torch.sub(change, seen, out=seen)
    opposed = lost.add_(seen).sign_().sub_(torch.sign(change, out=seen)).mul_(0.5)
    # The next number is one further in its bits; ``where`` chooses value by value, which takes longer than the rest.
    bits = _BITS[moved.element_size()]
    moved.view(bits).add_(opposed.to(bits))
    return moved.clamp_(0, 1)


def project(images: Tensor, change: Tensor, norm: Norm, eps: float) -> Tensor:
    """Images moved by a change that is first clipped to [0, 1], then projected onto the ball of radius ``eps``.

    Both projections shrink values towards the images, so the second keeps what the first has done. In Linf this is the
    projection onto the intersection of ball and box; in L2 and L1 it is a point of the intersection that spends all of
    eps, though not always the nearest.

    Args:
        images: Centers of the balls, floats in [0, 1], shape ``(N, ...)``.
        change: Same shape.
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius.
    """
    change = change.clamp(-images, 1 - images)
    if norm == "linf":
        return add(images, change.clamp_(-eps, eps))
    if norm == "l2":
        sizes = torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=torch.float64)
        shrink = torch.where(sizes > eps, eps / sizes, 1.0).to(change.dtype)
        return add(images, change * per_sample(shrink, change))
    if norm == "l1":
        return add(images, project_l1(change.flatten(1), eps).reshape(change.shape))
    raise ValueError(f"no projection onto a ball in {norm}")


def keep_largest(images: Tensor, change: Tensor, count: float) -> Tensor:
    """Images moved by the largest values of a change, the nearest point in [0, 1] that differs in so many values.

    Args:
        images: Floats in [0, 1], shape ``(N, ...)``.
        change: Same shape.
        count: How many values may change; rounded down.
    """
    flat = change.clamp(-images, 1 - images).flatten(1)
    largest = flat.abs().topk(min(int(count), flat.shape[1]), dim=1).indices
    kept = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest))
    return add(images, kept.reshape(images.shape))


def project_l1(change: Tensor, eps: float) -> Tensor:
    """Euclidean projection of rows onto the L1 ball (Duchi et al., ICML 2008, figure 1)."""
    if eps == 0:
        return torch.zeros_like(change)
    sizes = change.double().abs()
    ordered = sizes.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - eps
    ranks = torch.arange(1, ordered.shape[1] + 1, device=change.device)
    support = (ordered * ranks > excess).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(1, support - 1) / support).clamp(min=0)
    return change.sign() * (sizes - threshold).clamp(min=0).to(change.dtype)


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


def uniform_in_ball(rng: Streams, draw: Draw, like: Tensor, norm: Norm, eps: float) -> Tensor:
    """Changes drawn uniformly from the ball of radius ``eps``.

    Args:
        rng: One stream per sample.
        draw: Names the draw.
        like: Images whose shape ``(N, ...)`` and dtype the changes take.
        norm: ``linf``, ``l2`` or ``l1``.
        eps: Radius.
    """
    shape = tuple(like.shape[1:])
    count = math.prod(shape)
    names = draw if isinstance(draw, tuple) else (draw,)
    if norm == "linf":
        return rng.uniform(draw, shape, -eps, eps, dtype=like.dtype)
    if norm == "l2":
        direction = l2_direction(rng.normal((*names, "direction"), shape, dtype=like.dtype))
        radius = rng.uniform((*names, "radius"), (), dtype=torch.float64) ** (1 / count)
        return direction * per_sample(eps * radius, like).to(like.dtype)
    if norm == "l1":
        # Spacings of a Poisson process, one more than there are values, are uniform in the simplex once they sum to 1.
        spacings = -torch.log1p(-rng.uniform((*names, "spacings"), (count + 1,), dtype=torch.float64))
        sizes = (eps * spacings / spacings.sum(dim=1, keepdim=True))[:, :count].reshape(like.shape)
        return rng.signs((*names, "signs"), shape, dtype=like.dtype) * sizes.to(like.dtype)
    raise ValueError(f"no ball in {norm}")


def l2_direction(values: Tensor) -> Tensor:
    """Every sample scaled to L2 norm 1; zero stays zero. Values as small as the dtype holds do not vanish."""
    scaled = _scaled(values)
    return scaled.div_(_divisor(torch.linalg.vector_norm(scaled.flatten(1), dim=1), values))


def l1_direction(values: Tensor) -> Tensor:
    """The same in L1."""
    scaled = _scaled(values)
    return scaled.div_(_divisor(scaled.flatten(1).abs().sum(dim=1), values))


def _scaled(values: Tensor) -> Tensor:
    return values / _divisor(values.flatten(1).abs().amax(dim=1), values)


def _divisor(sizes: Tensor, like: Tensor) -> Tensor:
    return per_sample(torch.where(sizes > 0, sizes, 1.0), like)
