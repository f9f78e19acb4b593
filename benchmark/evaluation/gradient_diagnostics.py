"""Gradient-masking diagnostics: traits of a model's answers and gradients that make attacks on it fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from robbench.attacks._losses import gain
from robbench.core.attack import Loss
from robbench.core.contracts import Classifier

FRESH_DRAWS = 100
"""Draws that a random prediction must at least be counted over."""
BETWEEN = 0.4 / 255
"""How far from 8-bit pixel values, of which half a level is the farthest."""


def lost_gradients(model: Classifier, images: Tensor, labels: Tensor) -> dict[Loss, Tensor]:
    """Whether an attack finds no direction in the input gradient, by the loss that it follows.

    A gradient is lost where all of it is zero or, having lost its digits, below the smallest normal number of its type;
    and where any of it is infinite or no number.

    Args:
        model: One forward pass, and a backward pass for each loss.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.

    Returns:
        bool, shape ``(N,)`` each.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        scores = model(images)
        if not scores.requires_grad:
            return {loss: torch.ones_like(labels, dtype=torch.bool) for loss in get_args(Loss)}
        values = {loss: gain(loss, labels, targeted=False)(scores).sum() for loss in get_args(Loss)}
        gradients = {
            loss: torch.autograd.grad(value, images, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for loss, value in values.items()
        }
    return {loss: _lost(gradient) for loss, gradient in gradients.items()}


def lost_between_levels(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether no loss has a gradient beside images of 8 bits, where attacks go on from them.

    Args:
        model: As in ``lost_gradients``.
        images: Float, multiples of 1/255 in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.

    Returns:
        bool, shape ``(N,)``.
    """
    beside = torch.where(images < 0.5, images + BETWEEN, images - BETWEEN)
    return torch.stack([*lost_gradients(model, beside, labels).values()]).all(dim=0)


def _lost(gradient: Tensor) -> Tensor:
    # The largest of values that are no numbers among others is no number, for which no comparison holds.
    largest = gradient.flatten(1).abs().amax(dim=1)
    return ~((largest >= torch.finfo(gradient.dtype).tiny) & (largest < torch.inf))


def traits(model: Classifier, images: Tensor) -> tuple[str, ...]:
    """What can be seen of a model from its answers on some images.

    ``randomized``: it answers the same images differently; ``averaged``: its scores are an expectation over draws,
    and its prediction is counted over enough of them;
    ``outputs-probabilities``: its scores are not negative and sum to one; ``no-gradient``: they depend on the image in
    no way that can be differentiated.
    """
    return tuple(name for name, holds in _traits(model, images) if holds)


def _traits(model: Classifier, images: Tensor) -> Iterator[tuple[str, bool]]:
    with torch.no_grad():
        first, predicted = model(images), model.predict(images)
        model.redraw(1)
        second, again = model(images), model.predict(images)
    # The same in the same places, numbers or not: a score that is none differs even from itself.
    same = torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True)
    yield "randomized", not (same and torch.equal(predicted, again))
    yield "averaged", model.draws > 1 and model.votes >= FRESH_DRAWS
    sums = first.double().sum(dim=1)
    # Half precision inside the model makes sums that are off by a few thousandths.
    sum_to_one = bool((first >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all())
    # Where there are labels alone, one and zeros stand for them.
    yield "outputs-probabilities", sum_to_one and model.answers != "labels"
    with torch.enable_grad():
        yield "no-gradient", not model(images.detach().requires_grad_()).requires_grad
