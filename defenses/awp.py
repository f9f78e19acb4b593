"""Adversarial training at weights that are moved against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import IteratedTraining
from robbench.defenses.pgd_training import PGDTraining
from robbench.defenses.trades import TradesTraining


@register_defense("awp", brief="Adversarial weight perturbation, on PGD training or TRADES")
@dataclass(frozen=True)
class WeightPerturbation(IteratedTraining):
    """Adversarial weight perturbation (Wu et al., "Adversarial weight perturbation helps robust generalization", 2020).

    Equations 8 and 9, one step: each layer's weights move by ``gamma * ‖w‖ * g / ‖g‖`` along the gradient g of the loss
    on the step's examples; the gradient of the loss there is taken for that at the weights themselves. Vectors (biases
    and normalization) stay.

    Attributes:
        gamma: Size of the move as a share of the layer's norm.
        on: The training that it is added to: ``pgd-training``, or ``trades``, whose attack sees the network by ``mode``
            as well.
        beta: Weight of the divergence in ``trades``.
    """

    gamma: Annotated[float, Field(gt=0)] = 0.005
    on: Literal["pgd-training", "trades"] = "pgd-training"
    beta: Annotated[float, Field(gt=0)] = 6.0

    @property
    def uses_scores(self) -> bool:
        """Where it is added to TRADES."""
        return self.on == "trades"

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of the training that it is added to, and the loss a second time."""
        forwards, backwards = self._inner().passes(num_classes)
        again = 2 if self.on == "trades" else 1
        return forwards + again, backwards + again

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss at the moved weights, a scalar."""
        inner = self._inner()
        examples = inner.examples(batch)

        def loss(batch: Batch, apart: bool) -> Tensor:
            if isinstance(inner, TradesTraining):
                return inner.loss_on(batch, examples, apart)
            return batch.attack_loss(examples, batch.images) if apart else batch.loss(examples)

        weights = {name: weight for name, weight in batch.model.named_parameters() if weight.ndim > 1}
        copies = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with torch.enable_grad():
            value = loss(batch.at(copies), apart=True)
        slopes = torch.autograd.grad(value, list(copies.values()), allow_unused=True, materialize_grads=True)
        moves = {
            name: self.gamma * weight.detach().norm() * slope / slope.norm().clamp_min(torch.finfo(slope.dtype).tiny)
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        return loss(batch.at({name: weight + moves[name] for name, weight in weights.items()}), apart=False)

    def _inner(self) -> PGDTraining | TradesTraining:
        shared = {name: getattr(self, name) for name in ("eps", "norm", "eps_warmup", "mode", "steps", "rel_step")}
        return TradesTraining(beta=self.beta, **shared) if self.on == "trades" else PGDTraining(**shared)
