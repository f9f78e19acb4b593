"""Models that may reject images, as attacks see them."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.contracts import REJECTED, Classifier


def misled(predicted: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are a wrong class, bool: a rejection is none, and no success of an attack."""
    return (predicted != labels) & (predicted != REJECTED)


def accepting(model: Classifier, labels: Tensor) -> Classifier:
    """A model as attacks on images of known classes see it: with scores of model and detector together.

    Args:
        model: The model, which is returned where it rejects nothing.
        labels: True classes of the batch at hand, int64, shape ``(N,)``.
    """
    return _Accepting(model, labels) if model.rejects else model


class _Accepting(Classifier):
    """A model whose label is outscored only where another class is ahead of it and the image is accepted.

    The label's score is raised: with m the lead of the best other class and a the acceptance, the new lead is the sum
    of those that are negative, or where none is, the smaller one. So attacks for one model work on the pair, which
    Carlini and Wagner ("Adversarial examples are not easily detected", 2017, section 3.3) attack through a class of its
    own for rejected images. Predictions are the model's.
    """

    def __init__(self, model: Classifier, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels, self.rejects = model, labels, True
        self.num_classes, self.surrogates, self.training = model.num_classes, model.surrogates, model.training
        self.draws, self.votes = model.draws, model.votes

    def forward(self, images: Tensor) -> Tensor:
        """The scores, shape ``(N, K)``; those of the model alone for another number of images than there are labels."""
        scores, acceptance = self.model.weighed(images)
        if len(images) != len(self.labels):
            return scores
        own, acceptance = self.labels[:, None], acceptance[:, None].to(scores.dtype)
        best = scores.scatter(1, own, -torch.inf).amax(dim=1, keepdim=True)
        lead = best - scores.gather(1, own)
        both = torch.where(
            (lead < 0) | (acceptance < 0), lead.clamp_max(0) + acceptance.clamp_max(0), torch.minimum(lead, acceptance)
        )
        return scores.scatter(1, own, best - both)

    def embed(self, images: Tensor) -> Tensor:
        """The model's embedding, shape ``(N, D)``."""
        return self.model.embed(images)

    def predict(self, images: Tensor) -> Tensor:
        """The model's predictions."""
        return self.model.predict(images)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and the model's predictions."""
        return self(images), self.predict(images)

    def subset(self, index: Tensor) -> Classifier:
        """The same for some samples of the batch at hand."""
        return _Accepting(self.model.subset(index), self.labels[index])

    def surrogate(self, name: str) -> Classifier:
        """Other scores of the model, raised likewise.

        Raises:
            KeyError: If the model has none of that name.
        """
        return _Accepting(self.model.surrogate(name), self.labels)
