"""Robust accuracy in the course of training, and what ends training before its last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robbench.attacks.pgd import PGD
from robbench.core.batches import in_batches
from robbench.core.contracts import Classifier, Defense, Samples, to_float
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.training.history import Epoch, kept
from robbench.training.recipe import Keep, Recipe

WATCHED = 256
"""Validation images, at most, on which robust accuracy is measured."""


@dataclass(frozen=True)
class End:
    """Why training ends before its last epoch, and which weights are the model."""

    reason: str
    keep: Keep


def robust_accuracy(model: Classifier, samples: Samples, threat: Threat, seed: int, device: str) -> float:
    """Balanced accuracy under PGD with 10 steps; a measure for choosing an epoch, not for boards.

    Args:
        model: In evaluation mode.
        samples: The images.
        threat: Limits of the change.
        seed: Of the attack's random starts.
        device: Device type.
    """

    def robust_ones(index: Tensor, batch: Samples) -> Tensor:
        images, labels = to_float(batch.images, device), batch.labels.to(device)
        rng = Streams.of(batch.ids.to(device), seed, "robust validation")
        with torch.no_grad():
            right = model.predict(images) == labels
            attacked = PGD().perturb(model, images[right], labels[right], threat, rng[right])
            robust = right.double()
            robust[right] = (model.predict(attacked) == labels[right]).double()
        return robust.cpu()

    robust, labels = torch.cat([*in_batches(samples, WATCHED, robust_ones)]), samples.labels
    return float(torch.stack([robust[labels == label].mean() for label in labels.unique()]).mean())


def watched(defenses: Sequence[Defense], recipe: Recipe, reference: float) -> Threat | None:
    """Limits under which robust accuracy is measured after every epoch, or None where nothing depends on it."""
    asked = [threat for defense in defenses if (threat := defense.watched(reference)) is not None]
    return asked[0] if asked else Threat("linf", reference) if recipe.keep == "robust" else None


def early_end(history: Sequence[Epoch], defenses: Sequence[Defense], recipe: Recipe) -> End | None:
    """Whether training ends with the last epoch of a history, or None to go on."""
    if not history:
        return None
    robust = [line.validation_robust_accuracy for line in history if line.validation_robust_accuracy is not None]
    for defense in defenses:
        reason = defense.stop(robust)
        if reason is not None:
            return End(reason, "robust")
    best = kept(history, recipe.keep).epoch
    if recipe.patience and len(history) - best >= recipe.patience:
        return End(f"no epoch since {best} is better", recipe.keep)
    return None
