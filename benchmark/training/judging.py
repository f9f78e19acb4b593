"""How good a network in training is, on validation images above all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robbench.core.batches import fitting, in_batches
from robbench.core.contracts import Classifier, Objective, Samples, to_float

JUDGING_BATCH = 256
"""Images per forward pass when predictions are collected; a constant, since sums in convolutions depend on it."""


def predictions(model: Classifier, samples: Samples, device: str) -> Tensor:
    """Predictions on samples, in fixed batches, int64 on the CPU, shape ``(N,)``."""

    def predicted(index: Tensor, batch: Samples) -> Tensor:
        with torch.no_grad():
            return model.predict(to_float(batch.images, device)).cpu()

    return torch.cat([*in_batches(samples, fitting(JUDGING_BATCH, samples.image_shape, device), predicted)])


def accuracies(model: Classifier, samples: Samples, num_classes: int, device: str) -> tuple[float, float]:
    """Plain and balanced accuracy."""
    correct = (predictions(model, samples, device) == samples.labels).double()
    per_class = [correct[samples.labels == label].mean() for label in range(num_classes)]
    return float(correct.mean()), float(torch.stack(per_class).mean())


def mean_loss(model: Classifier, objective: Objective, samples: Samples, device: str) -> float:
    """The objective's loss without class weights, in fixed batches."""
    total, count = 0.0, 0
    order = np.random.default_rng(0)
    with torch.no_grad():
        size = fitting(JUDGING_BATCH, samples.image_shape, device)
        for index in objective.batches(samples.labels, size, order):
            images = to_float(samples.images[index], device)
            value = objective.loss(model, images, samples.labels[index].to(device), None)
            total, count = total + float(value) * len(index), count + len(index)
    return total / count
