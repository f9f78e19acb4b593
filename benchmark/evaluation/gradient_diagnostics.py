"""Gradient-masking diagnostics: traits of a model's answers and gradients that make attacks on it fail."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from robbench.attacks._losses import margin
from robbench.core.contracts import Classifier

FRESH_DRAWS = 100
"""Draws that a random prediction must at least be counted over."""


def zero_gradients(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the input gradient is exactly zero under both cross-entropy and the margin to the best other class.

    Args:
        model: One forward and two backward passes.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.

    Returns:
        bool, shape ``(N,)``.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        scores = model(images)
        if not scores.requires_grad:
            return torch.ones(len(images), dtype=torch.bool, device=images.device)
        losses = (functional.cross_entropy(scores, labels, reduction="sum"), margin(scores, labels).sum())
        gradients = [
            torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for loss in losses
        ]
    still = [(gradient == 0).flatten(1).all(dim=1) for gradient in gradients]
    return still[0] & still[1]


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
    yield "randomized", not (torch.equal(first, second) and torch.equal(predicted, again))
    yield "averaged", model.draws > 1 and model.votes >= FRESH_DRAWS
    sums = first.double().sum(dim=1)
    yield "outputs-probabilities", bool((first >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())
    with torch.enable_grad():
        yield "no-gradient", not model(images.detach().requires_grad_()).requires_grad
