"""Gradients with respect to images, and the steps that follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robbench.attacks._losses import Gain, others
from robbench.attacks._projections import l2_direction
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm


def input_gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient of a scalar function of images; zero where it does not depend on them.

    Works where gradients are switched off outside, and leaves no gradient in any weight.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        value = function(images)
    if not value.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(value, images, allow_unused=True, materialize_grads=True)[0]


def score_gradient(model: Classifier, images: Tensor, objective: Gain) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of an objective of the scores, with its value and the predictions from the same pass.

    Args:
        model: The model; one forward and one backward pass.
        images: Shape ``(N, C, H, W)``.
        objective: From scores ``(N, K)`` to one value per sample ``(N,)``. The gradient is that of their sum, so that
            no sample's depends on the size of the batch.

    Returns:
        The gradient, of the images' shape; the values ``(N,)``; the hard predictions ``(N,)``.
    """
    seen: list[Tensor] = []

    def total(images: Tensor) -> Tensor:
        scores, decisions = model.decide(images)
        values = objective(scores)
        seen.extend((values.detach(), decisions))
        return values.sum()

    gradient = input_gradient(total, images)
    values, decisions = seen
    return gradient, values, decisions


def linearized_margins(
    model: Classifier, images: Tensor, labels: Tensor, count: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Margins of other classes over the labels one after the other, with their gradients.

    Args:
        model: The model; one forward pass, and a backward pass for each class.
        images: Shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        count: How many other classes, those with the highest scores; None for all.

    Yields:
        Scores of a class minus those of the labels, shape ``(N,)``, and their gradients, of the images' shape. Nothing
        where scores do not depend on the images.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        scores = model(images)
        rivals = others(scores, labels).topk(min(count or scores.shape[1], scores.shape[1] - 1), dim=1).indices
        gaps = scores.gather(1, rivals) - scores.gather(1, labels[:, None])
        totals = gaps.sum(dim=0).unbind()
    if gaps.requires_grad:
        for gap, total in zip(gaps.detach().unbind(dim=1), totals, strict=True):
            (slope,) = torch.autograd.grad(total, images, retain_graph=True, allow_unused=True, materialize_grads=True)
            yield gap, slope


def steepest_step(images: Tensor, gradient: Tensor, norm: Norm, size: float | Tensor) -> Tensor:
    """The change of norm ``size`` that a linear function with this gradient rises most along; zero where it is zero.

    In L1 that is one value, the one with the largest gradient, as long as the box has room for it; what does not fit
    goes to the next largest, which is the exact maximum over the intersection of ball and box.

    Args:
        images: Where the step starts, floats in [0, 1], shape ``(N, ...)``.
        gradient: Same shape.
        norm: ``linf``, ``l2`` or ``l1``.
        size: Norm of the step; in Linf and L2 also of each sample's, shape ``(N, 1, ...)``.
    """
    if norm == "linf":
        return gradient.sign().mul_(size)
    if norm == "l2":
        return size * l2_direction(gradient)
    if norm == "l1":
        room = torch.where(gradient > 0, 1 - images, images).where(gradient != 0, 0).flatten(1)
        order = gradient.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
        ordered = room.gather(1, order)
        spent = ordered.cumsum(dim=1) - ordered
        taken = torch.minimum((size - spent).clamp(min=0), ordered)
        return gradient.sign() * torch.zeros_like(room).scatter(1, order, taken).reshape(gradient.shape)
    raise ValueError(f"no steepest step in {norm}")
