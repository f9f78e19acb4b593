"""Steps of training on small models, and what defenses ask of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from closed_forms import Linear, streams
from torch import Tensor, nn

from robbench.core.contracts import Classifier
from robbench.core.training_step import Batch
from robbench.models.cross_entropy import CrossEntropy


@dataclass
class Seen:
    """The images that each loss was asked about."""

    trained: list[Tensor] = field(default_factory=list)
    attacked: list[Tensor] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)


def recording(seen: Seen) -> CrossEntropy:
    """Cross-entropy that writes down what it is asked about."""

    class Recording(CrossEntropy):
        def loss(
            self,
            model: Classifier,
            images: Tensor,
            labels: Tensor,
            weights: Tensor | None,
            anchor: Tensor | None = None,
        ) -> Tensor:
            (seen.trained if anchor is None else seen.attacked).append(images.detach())
            seen.references.extend([] if anchor is None else [anchor])
            return super().loss(model, images, labels, weights, anchor)

    return Recording()


def step(model: Classifier, images: Tensor, labels: Tensor, **rest: Any) -> Batch:
    """A step of training, with usual values for what is not given."""
    usual = {"rng": streams(len(images)), "eps": 0.03, "objective": CrossEntropy()}
    return Batch(images=images, labels=labels, model=model, **{**usual, **rest})


def trainable(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Scores ``W x + b`` whose weights are to be trained; no bias is one of zero."""
    return Linear(weight, torch.zeros(len(weight)).to(weight) if bias is None else bias).requires_grad_(True).train()


class Normed(Classifier):
    """Convolution, batch normalization, rectifier, dropout and a linear head, in float64."""

    def __init__(self, classes: int = 3, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.num_classes = classes
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))
            self.head = nn.Linear(64, classes)
        self.double().train()

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.body(images).flatten(1)
        return result

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(images))
        return result
