"""Defenses that act in training one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from robbench.core.contracts import Defense
from robbench.core.sample_rng import Streams
from robbench.core.training_step import Batch, own_loss


def compose(
    defenses: Sequence[Defense], states: Sequence[dict[str, Tensor]] | None = None
) -> Callable[[Batch], Tensor]:
    """The training loss of defenses that act one after the other.

    Each defense sees the images and labels that the one before it made, and takes what comes after it for the loss:
    perturbation then FGM trains on FGM examples of perturbed images. Each draws from streams of its own.

    Args:
        defenses: First to last; none is no defense.
        states: What each keeps from step to step; nothing is kept where it is None.

    Returns:
        From one step of training to the scalar to descend on.
    """
    kept = [{} for _ in defenses] if states is None else states

    def from_position(position: int, batch: Batch, rng: Streams) -> Tensor:
        if position == len(defenses):
            return own_loss(batch)
        stage = replace(
            batch,
            rng=rng.fork("defense", position),
            state=kept[position],
            following=lambda made: from_position(position + 1, made, rng),
        )
        return defenses[position].training_loss(stage)

    return lambda batch: from_position(0, batch, batch.rng)
