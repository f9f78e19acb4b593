"""One step of training as a defense sees it: losses and scores of the network, and of what comes after the defense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robbench.core.contracts import Classifier, Objective
from robbench.core.sample_rng import Streams

Mode: TypeAlias = Literal["train", "eval"]
"""How an attack inside training sees the network: as it trains, or as it will predict."""


def own_loss(batch: Batch) -> Tensor:
    """The objective's loss on a batch: what a chain of defenses ends in."""
    return batch.asked(batch.objective.loss, batch.images, batch.labels, batch.class_weights)


@dataclass(frozen=True)
class Batch:
    """One step of training.

    Attributes:
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``; where a defense before this one mixed them, float, shape ``(N, K)``.
        rng: Streams of the samples, other ones in every epoch.
        eps: The data set's reference size of change in Linf.
        model: The network in training.
        objective: What it is trained for.
        class_weights: Weights of the classes in the loss, shape ``(K,)``, or None.
        progress: Share of all optimizer steps that are done, in [0, 1).
        ends_epoch: Whether this is the last step of its epoch.
        state: What the defense keeps from step to step; it stands in checkpoints.
        precision: ``float32`` or ``bfloat16``, of passes through the network.
        weights: Weights and buffers to use in place of the network's own, by their names in it; see ``at``.
        spent: Told how many images went forward and backward past the network's modules, as bounds do.
        following: The loss of a batch through the defenses that come after this one.
    """

    images: Tensor
    labels: Tensor
    rng: Streams
    eps: float
    model: Classifier
    objective: Objective
    class_weights: Tensor | None = None
    progress: float = 0.0
    ends_epoch: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    precision: str = "float32"
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    spent: Callable[[int, int], None] = lambda forwards, backwards: None
    following: Callable[[Batch], Tensor] = own_loss

    @property
    def sample_weights(self) -> Tensor:
        """The balancer's class weights of the samples, shape ``(N,)``; ones where there are none."""
        if self.class_weights is None:
            return torch.ones(len(self.labels), device=self.images.device)
        if self.labels.is_floating_point():
            return self.labels @ self.class_weights.to(self.labels)
        return self.class_weights[self.labels]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of one value per sample, shape ``(N,)``, by ``sample_weights``."""
        weights = self.sample_weights.to(values)
        return (weights * values).sum() / weights.sum()

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss that is to become small, through the defenses that come after this one; a scalar.

        Args:
            images: Shape ``(N, C, H, W)``.
            labels: As in ``Batch``; the batch's where it is None.
        """
        return self.following(replace(self, images=images, labels=self.labels if labels is None else labels))

    def scores(self, images: Tensor) -> Tensor:
        """The network's scores in training, float32, shape ``(N, K)``, for losses of one's own."""
        return self.asked(_scores, images)

    def score_loss(self, scores: Tensor, labels: Tensor | None = None) -> Tensor:
        """The objective's loss on scores, a scalar, class weights included.

        Args:
            scores: Shape ``(N, K)``.
            labels: As in ``Batch``; the batch's where it is None.
        """
        return self.objective.score_loss(scores, self.labels if labels is None else labels, self.class_weights)

    def attack_loss(self, changed: Tensor, clean: Tensor, mode: Mode = "train") -> Tensor:
        """The loss that an attack inside training raises, a scalar.

        It moves no batch statistics, and no gradient of it reaches the network's own weights.

        Args:
            changed: Images under attack, shape ``(N, C, H, W)``.
            clean: The images that they were made from; objectives that compare images take them as references.
            mode: How the network is seen.
        """
        with _seen(self.model, mode):
            return self._apart().asked(self.objective.loss, changed, self.labels, self.class_weights, clean)

    def attack_scores(self, images: Tensor, mode: Mode = "train") -> Tensor:
        """Scores for an attack inside training, float32, shape ``(N, K)``; as ``attack_loss`` in all else."""
        with _seen(self.model, mode):
            return self._apart().asked(_scores, images)

    def at(self, weights: Mapping[str, Tensor]) -> Batch:
        """The same step at other weights: ``{name: weight + change}`` hands gradients on to the network's own.

        Args:
            weights: By their names in the network; those that are left out stay.
        """
        return replace(self, weights={**self.weights, **weights})

    def asked(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        """What a function of the network returns, at the step's weights and precision.

        Args:
            function: Its first argument is the network.
            *arguments: The others.
        """
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if not self.weights:
                return function(self.model, *arguments)
            named = {f"model.{name}": value for name, value in self.weights.items()}
            found: Tensor = functional_call(_Asked(self.model, function), named, arguments)
            return found

    def _apart(self) -> Batch:
        """The step at copies, so that nothing that happens to them reaches the network."""
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return replace(self, weights={**weights, **buffers, **self.weights})


class _Asked(nn.Module):
    """A function of a network as a module, since weights are replaced in those alone."""

    def __init__(self, model: Classifier, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: object) -> Tensor:
        return self.function(self.model, *arguments)


def _scores(model: Classifier, images: Tensor) -> Tensor:
    scores: Tensor = model(images)
    return scores.float() if scores.dtype == torch.bfloat16 else scores


@contextmanager
def _seen(model: nn.Module, mode: Mode) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
