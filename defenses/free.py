"""Training that replays each batch and moves its perturbation by the gradients of training itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import AdversarialTraining


@register_defense("free")
@dataclass(frozen=True)
class FreeTraining(AdversarialTraining):
    """Free adversarial training (Shafahi et al., "Adversarial training for free!", 2019).

    Algorithm 1: each batch is trained on several times, and ``δ = clip(δ + eps * sign(∇L(x + δ)), -eps, eps)`` by the
    backward pass that trains the network. δ stays from batch to batch. An epoch costs ``replays`` passes over the
    training set: divide the recipe's epochs by it.

    Attributes:
        replays: Optimizer steps on each batch.
    """

    norm: Literal["linf"] = "linf"
    replays: Annotated[int, Field(ge=1)] = 8

    def steps_per_batch(self) -> int:
        """The replays."""
        return self.replays

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on the perturbed images; its backward pass moves the perturbation."""
        count, radius = len(batch.images), self.radius(batch)
        kept = batch.state.get("delta", batch.images[:0])
        if len(kept) < count:
            kept = torch.cat([kept, torch.zeros_like(batch.images[len(kept) :])])
        images = self.moved(batch, kept[:count]).requires_grad_()

        def follow(gradient: Tensor) -> None:
            moved = (kept[:count] + radius * gradient.sign()).clamp(-radius, radius)
            batch.state["delta"] = torch.cat([moved, kept[count:]])

        if torch.is_grad_enabled():
            images.register_hook(follow)
        return batch.loss(images)
