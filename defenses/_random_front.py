"""The shared parts of defenses that change images at random in front of a model."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.core.contracts import Classifier, Defense
from robbench.core.errors import RequestError
from robbench.core.sample_rng import Streams

CHUNK = 1024
"""Changed images per pass of the network when votes are counted, where no gradient has to be kept."""

RandomChange = Callable[[Tensor, Streams, int], Tensor]
"""From images, their streams and the number of a draw to images of the same shape, dtype and device."""


class Randomized(Classifier):
    """A model whose images pass a random change, drawn anew at every call.

    Draws belong to the image and to a stream, not to the batch or to how often the model was asked: so asking again
    does not help to find a lucky draw. ``redraw`` changes the stream, so that a judge draws what no attack has seen.

    Args:
        model: The model behind the change.
        change: The change, differentiable.
        draws: Draws that scores are averaged over; all of them are differentiated.
        votes: Draws that the prediction is counted over.

    Raises:
        RequestError: If the model may reject images, which are no votes.
    """

    def __init__(self, model: Classifier, change: RandomChange, draws: int, votes: int) -> None:
        super().__init__()
        if model.rejects:
            raise RequestError("a random defense cannot stand in front of a detector; name the detector first")
        self.model, self.change = model, change
        self.num_classes, self.surrogates, self.training = model.num_classes, model.surrogates, model.training
        self.draws, self._averaged = draws * model.draws, draws
        self.votes, self._counted = votes * (model.votes or model.draws), votes
        self.stream = 0

    def redraw(self, stream: int) -> None:
        """Draw other changes from here on, independent of those of other streams."""
        super().redraw(stream)
        self.stream = stream

    def forward(self, images: Tensor) -> Tensor:
        """Log of the mean probabilities over ``draws`` fresh draws, shape ``(N, K)``.

        Its gradient is that of the expectation over the draws (EOT, Athalye et al., 2018).
        """
        (changed,) = self._changed(images, "scores", self._averaged, self._averaged)
        scores: Tensor = self.model(changed.flatten(0, 1))
        logs = functional.log_softmax(scores.reshape(self._averaged, len(images), self.num_classes), dim=2)
        return logs.logsumexp(dim=0) - math.log(self._averaged)

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output on images as they are, shape ``(N, D)``."""
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
            for changed in self._changed(images, "votes", draws, max(1, CHUNK // max(1, len(images)))):
                predicted = self.model.predict(changed.flatten(0, 1)).reshape(len(changed), len(images))
                found += functional.one_hot(predicted, self.num_classes).sum(dim=0)
        return found

    def surrogate(self, name: str) -> Classifier:
        """Other scores of the model, behind the same change.

        Raises:
            KeyError: If the model has none of that name.
        """
        other = Randomized(self.model.surrogate(name), self.change, self._averaged, self._counted)
        other.stream = self.stream
        return other

    def _changed(self, images: Tensor, use: str, draws: int, chunk: int) -> Iterator[Tensor]:
        """The images under each draw, a few draws at a time, shape ``(D, N, C, H, W)``."""
        rng = Streams.of(_content(images), "smoothing", self.stream, use)
        for start in range(0, draws, chunk):
            numbers = range(start, min(start + chunk, draws))
            copies = images.expand(len(numbers), *images.shape)
            yield torch.stack([self.change(copy, rng, draw) for copy, draw in zip(copies, numbers, strict=True)])


def _content(images: Tensor) -> Tensor:
    """A number for what every image shows, int64, shape ``(N,)``."""
    bits = images.detach().flatten(1).double().view(torch.int64)
    weights = Streams.of(torch.zeros(1), "content").bits("weights", (bits.shape[1],)).to(bits.device)
    return (bits * weights).sum(dim=1)


def gaussian_noise(images: Tensor, rng: Streams, draw: int, sigma: float) -> Tensor:
    """Normal numbers of standard deviation ``sigma``, of the images' shape and dtype."""
    # The inverse of the distribution function at the middles of 2^24 intervals: a third of the time of ``normal``,
    # and noise is what takes longest with small networks.
    uniform = rng.uniform(draw, tuple(images.shape[1:]), -1, 1, dtype=images.dtype) + 2.0**-24
    return sigma * math.sqrt(2) * torch.erfinv(uniform)


@dataclass(frozen=True)
class RandomPreprocessing(Defense):
    """A random change of the images in front of a trained model, drawn anew at every call; training goes without it.

    Predictions are counted over ``votes`` fresh draws, and attacks follow the expectation over ``draws``. A call for
    scores costs ``draws`` passes, one for predictions ``votes``, one for both the sum.

    Attributes:
        draws: Draws that the scores are averaged over which attacks differentiate.
        votes: Draws that a prediction is counted over.
    """

    draws: Annotated[int, Field(ge=1)] = 16
    votes: Annotated[int, Field(ge=1)] = 100

    gradients: ClassVar[str] = "expectation"

    @abc.abstractmethod
    def change(self, images: Tensor, rng: Streams, draw: int) -> Tensor:
        """The images under one draw, differentiable.

        Args:
            images: Floats, shape ``(N, C, H, W)``; in [0, 1] unless another defense adds noise to them.
            rng: The images' streams, from which everything random is drawn.
            draw: Number of the draw, which names what is drawn.
        """

    def wrap(self, model: Classifier) -> Classifier:
        """The model behind the change."""
        return Randomized(model, self.change, self.draws, self.votes)
