"""Defenses that act in training one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from robbench.core.contracts import Batch, Defense


def compose(defenses: Sequence[Defense]) -> Callable[[Batch], Tensor]:
    """The training loss of defenses that act one after the other.

    Each defense sees the images that the one before it made, and takes what comes after it for the loss: perturbation
    then FGM trains on FGM examples of perturbed images. Each draws from streams of its own.

    Args:
        defenses: First to last; none is no defense.

    Returns:
        From one step of training to the scalar to descend on.
    """

    def from_position(position: int, batch: Batch) -> Tensor:
        if position == len(defenses):
            return batch.loss(batch.images)
        stage = replace(
            batch,
            rng=batch.rng.fork("defense", position),
            loss=lambda images: from_position(position + 1, replace(batch, images=images)),
        )
        return defenses[position].training_loss(stage)

    return lambda batch: from_position(0, batch)
