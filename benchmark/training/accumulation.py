"""The gradient of a batch: at once, or summed up over parts where memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robbench.core.batches import halving
from robbench.core.contracts import Defense, Objective
from robbench.core.errors import RequestError
from robbench.core.training_step import Batch
from robbench.training.passes import TrainingPasses


@dataclass
class Accumulation:
    """How a training run takes its batches. The recipe stays: one step for each batch, on the gradient of all of it.

    Attributes:
        refusal: Why batches cannot be taken in parts, or empty.
        notes: What happened on the way.
        size: Images per part; of whole batches until memory runs out.
    """

    refusal: str = ""
    notes: list[str] = field(default_factory=list)
    size: int | None = None

    @classmethod
    def of(cls, objective: Objective, defenses: Sequence[Defense]) -> Accumulation:
        """What suits an objective and defenses: a loss that compares samples is one of whole batches."""
        whole = [] if objective.trains_scores else [type(objective).__name__]
        for defense in defenses:
            if not defense.by_sample and type(defense).training_loss is not Defense.training_loss:
                whole.append(type(defense).__name__)
        return cls(f"{', '.join(whole)} needs whole batches" if whole else "")

    def backward(
        self, network: nn.Module, batch: Batch, descend: Callable[[Batch], Tensor], passes: TrainingPasses
    ) -> Tensor:
        """Give the network the gradient of a batch.

        Args:
            network: What is trained.
            batch: The batch.
            descend: Its loss.
            passes: What training costs; passes that memory ended do not count.

        Returns:
            The loss, a scalar.

        Raises:
            RequestError: If memory runs out and the batch cannot be taken in parts.
        """
        whole, before = len(batch.labels), (passes.forwards, passes.backwards)

        def attempt(size: int) -> Tensor:
            if size < whole and self.refusal:
                raise RequestError(
                    f"memory ran out in training on batches of {whole}, and {self.refusal}; make batch_size smaller"
                )
            network.zero_grad(set_to_none=True)
            passes.forwards, passes.backwards = before
            if size >= whole:
                value = descend(batch)
                value.backward()
                return value.detach()
            losses, every = [], float(batch.sample_weights.double().sum())
            for part in torch.arange(whole, device=batch.images.device).tensor_split(math.ceil(whole / size)):
                piece = replace(batch, images=batch.images[part], labels=batch.labels[part], rng=batch.rng[part])
                value = descend(piece) * (float(piece.sample_weights.double().sum()) / every)
                value.backward()
                losses.append(value.detach())
            return torch.stack(losses).sum()

        loss, size = halving(min(self.size or whole, whole), attempt, lambda note: None)
        if size < min(self.size or whole, whole):
            self.size = size
            normalized = any(isinstance(part, _BatchNorm) for part in network.modules())
            but = "; statistics of batch normalization are those of a part" if normalized else ""
            self.notes.append(f"memory ran out: gradients of batches of {whole} summed up over parts of {size}{but}")
        return loss
