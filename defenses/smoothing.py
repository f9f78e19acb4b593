"""Randomized smoothing: the prediction that a model makes most often under Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.core.contracts import Batch, Classifier, Defense
from robbench.core.registry import register_defense
from robbench.core.sample_rng import Streams

CHUNK = 1024
"""Noisy images per pass of the network when votes are counted, where no gradient has to be kept."""


class Smoothed(Classifier):
    """A model whose images carry Gaussian noise, drawn anew at every call.

    Noise belongs to the image and to a stream, not to the batch or to how often the model was asked: so asking again
    does not help to find a lucky draw. ``redraw`` changes the stream, so that a judge draws what no attack has seen.

    Args:
        model: The model under noise.
        sigma: Standard deviation of the noise in units of a [0, 1] pixel. Noisy images are not clipped.
        draws: Draws that scores are averaged over; all of them are differentiated.
        votes: Draws that the prediction is counted over.
    """

    def __init__(self, model: Classifier, sigma: float, draws: int, votes: int) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma
        self.num_classes, self.surrogates, self.training = model.num_classes, model.surrogates, model.training
        self.draws, self._averaged = draws * model.draws, draws
        self.votes, self._counted = votes * (model.votes or model.draws), votes
        self.stream = 0

    def redraw(self, stream: int) -> None:
        """Draw other noise from here on, independent of that of other streams."""
        super().redraw(stream)
        self.stream = stream

    def forward(self, images: Tensor) -> Tensor:
        """Log of the mean probabilities over ``draws`` fresh draws, shape ``(N, K)``.

        Its gradient is that of the expectation over the draws (EOT, Athalye et al., 2018).
        """
        (noise,) = self._noise(images, "scores", self._averaged, self._averaged)
        scores: Tensor = self.model((images + noise).flatten(0, 1))
        logs = functional.log_softmax(scores.reshape(self._averaged, len(images), self.num_classes), dim=2)
        return logs.logsumexp(dim=0) - math.log(self._averaged)

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output on images without noise, shape ``(N, D)``."""
        return self.model.embed(images)

    def predict(self, images: Tensor) -> Tensor:
        """The most frequent prediction over ``votes`` fresh draws, shape ``(N,)``; ties go to the lower class."""
        return self.counts(images, self._counted).argmax(dim=1)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and predictions, each over its own draws: attacks that stop where few draws say so would lose."""
        return self(images), self.predict(images)

    def counts(self, images: Tensor, draws: int) -> Tensor:
        """How often the model predicts each class over fresh draws, int64, shape ``(N, K)``."""
        found = torch.zeros(len(images), self.num_classes, dtype=torch.int64, device=images.device)
        with torch.no_grad():
            for noise in self._noise(images, "votes", draws, max(1, CHUNK // max(1, len(images)))):
                predicted = self.model.predict((images + noise).flatten(0, 1)).reshape(len(noise), len(images))
                found += functional.one_hot(predicted, self.num_classes).sum(dim=0)
        return found

    def surrogate(self, name: str) -> Classifier:
        """Other scores of the model, under noise of the same strength.

        Raises:
            KeyError: If the model has none of that name.
        """
        other = Smoothed(self.model.surrogate(name), self.sigma, self._averaged, self._counted)
        other.stream = self.stream
        return other

    def _noise(self, images: Tensor, use: str, draws: int, chunk: int) -> Iterator[Tensor]:
        rng = Streams.of(_content(images), "smoothing", self.stream, use)
        for start in range(0, draws, chunk):
            yield torch.stack([self._normal(rng, i, images) for i in range(start, min(start + chunk, draws))])

    def _normal(self, rng: Streams, draw: int, images: Tensor) -> Tensor:
        # The inverse of the distribution function at the middles of 2^24 intervals: a third of the time of ``normal``,
        # and noise is what takes longest with small networks.
        uniform = rng.uniform(draw, tuple(images.shape[1:]), -1, 1, dtype=images.dtype) + 2.0**-24
        return self.sigma * math.sqrt(2) * torch.erfinv(uniform)


def _content(images: Tensor) -> Tensor:
    """A number for what every image shows, int64, shape ``(N,)``."""
    bits = images.detach().flatten(1).double().view(torch.int64)
    weights = Streams.of(torch.zeros(1), "content").bits("weights", (bits.shape[1],)).to(bits.device)
    return (bits * weights).sum(dim=1)


@register_defense("smoothing")
@dataclass(frozen=True)
class Smoothing(Defense):
    """Randomized smoothing (Cohen et al., "Certified adversarial robustness via randomized smoothing", 2019).

    Trains on images with Gaussian noise (section 3.3) and predicts by vote over noisy copies of an image.
    A call for scores costs ``draws`` passes, one for predictions ``votes``, one for both the sum.

    Attributes:
        sigma: Standard deviation of the noise in units of a [0, 1] pixel.
        draws: Draws that the scores are averaged over which attacks differentiate.
        votes: Draws that a prediction is counted over.
    """

    sigma: Annotated[float, Field(gt=0)] = 0.25
    draws: Annotated[int, Field(ge=1)] = 16
    votes: Annotated[int, Field(ge=1)] = 100

    gradients: ClassVar[str] = "expectation"

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on noisy images, a scalar."""
        noise = batch.rng.normal("smoothing", tuple(batch.images.shape[1:]), dtype=batch.images.dtype)
        return batch.loss(batch.images + self.sigma * noise)

    def wrap(self, model: Classifier) -> Classifier:
        """The model under noise."""
        return Smoothed(model, self.sigma, self.draws, self.votes)
