"""Randomized smoothing: the prediction that a model makes most often under Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.core.contracts import Classifier, Defense
from robbench.core.registry import register_defense
from robbench.core.sample_rng import Streams
from robbench.core.training_step import Batch
from robbench.defenses._random_front import Randomized, gaussian_noise


class Smoothed(Randomized):
    """A model whose images carry Gaussian noise, drawn anew at every call; see ``Randomized``.

    Args:
        model: The model under noise.
        sigma: Standard deviation of the noise in units of a [0, 1] pixel. Noisy images are not clipped.
        draws: Draws that scores are averaged over; all of them are differentiated.
        votes: Draws that the prediction is counted over.
    """

    def __init__(self, model: Classifier, sigma: float, draws: int, votes: int) -> None:
        def noisy(images: Tensor, rng: Streams, draw: int) -> Tensor:
            return images + gaussian_noise(images, rng, draw, sigma)

        super().__init__(model, noisy, draws, votes)
        self.sigma = sigma


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
    by_sample: ClassVar[bool] = True

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss on noisy images, a scalar."""
        noise = batch.rng.normal("smoothing", tuple(batch.images.shape[1:]), dtype=batch.images.dtype)
        return batch.loss(batch.images + self.sigma * noise)

    def wrap(self, model: Classifier) -> Classifier:
        """The model under noise."""
        return Smoothed(model, self.sigma, self.draws, self.votes)
