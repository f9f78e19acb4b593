"""A model as attacks see it: the same answers, every pass counted and charged to the samples that spend it."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.contracts import Classifier


class Oracle(Classifier):
    """A classifier that counts.

    A call with as many images as the view has samples, or a multiple, is charged to each sample alike; a call with
    another number of images cannot be told apart and is spread evenly. ``subset`` gives a view of some samples, which
    lets attacks that drop samples be charged exactly.

    Args:
        model: The model that answers.
        size: Number of samples in the batch at hand.
    """

    def __init__(self, model: Classifier, size: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes
        self.surrogates = model.surrogates
        self.draws, self.votes = model.draws, model.votes
        # Plain attributes: a buffer would be part of the model's state, which attacks must leave alone.
        self.spent = torch.zeros(2, size, dtype=torch.float64)
        self.rows = torch.arange(size)
        self.training = model.training

    @property
    def forwards(self) -> Tensor:
        """Forward passes per sample, float64, shape ``(N,)``."""
        return self.spent[0]

    @property
    def backwards(self) -> Tensor:
        """Backward passes per sample, float64, shape ``(N,)``."""
        return self.spent[1]

    def subset(self, index: Tensor) -> Oracle:
        """A view of some samples that shares the count."""
        view = Oracle(self.model, 0)
        view.spent = self.spent
        view.rows = self.rows[index.cpu()]
        return view

    def surrogate(self, name: str) -> Oracle:
        """A view of the model with other scores that shares the count."""
        view = Oracle(self.model.surrogate(name), 0)
        view.spent, view.rows = self.spent, self.rows
        return view

    def forward(self, images: Tensor) -> Tensor:
        """The model's scores, counted."""
        scores: Tensor = self.model(images)
        return self._count(images, scores)

    def embed(self, images: Tensor) -> Tensor:
        """The model's embedding, counted."""
        return self._count(images, self.model.embed(images))

    def predict(self, images: Tensor) -> Tensor:
        """The model's predictions, counted."""
        self._charge(0, len(images), self.model.votes or self.model.draws)
        return self.model.predict(images)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores and predictions, counted as one pass."""
        scores, predicted = self.model.decide(images)
        self._charge(0, len(images), self.model.votes)
        return self._count(images, scores), predicted

    def _count(self, images: Tensor, output: Tensor) -> Tensor:
        self._charge(0, len(images), self.model.draws)
        if output.requires_grad:
            size = len(images)
            output.register_hook(lambda gradient: self._charge(1, size, self.model.draws))
        return output

    def _charge(self, kind: int, images: int, each: int) -> None:
        if len(self.rows):
            self.spent[kind, self.rows] += each * images / len(self.rows)
