"""Rejecting images that look attacked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.core.contracts import REJECTED, Classifier, Defense
from robbench.core.registry import register_defense
from robbench.defenses.median import Median

By = Literal["confidence", "squeezing"]


class Detecting(Classifier):
    """A model that predicts a class or rejects the image.

    Args:
        model: The model.
        by: What rejects; see ``Detector``.
        false_alarms: Largest share of validation images that ``calibrate`` leaves rejected.
    """

    rejects = True

    def __init__(self, model: Classifier, by: By, false_alarms: float) -> None:
        super().__init__()
        self.model, self.by, self.false_alarms = model, by, false_alarms
        self.num_classes, self.surrogates, self.training = model.num_classes, model.surrogates, model.training
        self.draws, self.votes, self.threshold = model.draws, model.votes, -torch.inf
        self.other: Classifier | None = None

    def forward(self, images: Tensor) -> Tensor:
        """The model's scores, shape ``(N, K)``."""
        scores: Tensor = (self.other or self.model)(images)
        return scores

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output, shape ``(N, D)``."""
        return self.model.embed(images)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores and predictions, ``REJECTED`` below the threshold."""
        scores, predicted = self.model.decide(images)
        rejected = self._familiarity(images, scores) < self.threshold
        return self(images) if self.other else scores, predicted.masked_fill(rejected, REJECTED)

    def weighed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores, and how far an image lies above the threshold."""
        scores: Tensor = self.model(images)
        acceptance = self._familiarity(images, scores) - self.threshold
        return self(images) if self.other else scores, acceptance

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the threshold at the familiarity of clean images.

        Raises:
            ValueError: If there are none.
        """
        with torch.no_grad():
            found = [self._familiarity(batch, self.model(batch)).cpu() for batch in batches]
        values = torch.cat(found).sort().values if found else torch.zeros(0)
        if not len(values):
            raise ValueError("a detector sets its threshold on validation images, and there are none")
        self.threshold = float(values[int(self.false_alarms * len(values))])

    def subset(self, index: Tensor) -> Classifier:
        """The same for some samples of the batch at hand."""
        return self._like(self.model.subset(index), self.other and self.other.subset(index))

    def surrogate(self, name: str) -> Classifier:
        """Other scores of the model; what rejects stays.

        Raises:
            KeyError: If the model has none of that name.
        """
        return self._like(self.model, self.model.surrogate(name))

    def _like(self, model: Classifier, other: Classifier | None) -> Detecting:
        found = Detecting(model, self.by, self.false_alarms)
        found.threshold, found.other = self.threshold, other
        return found

    def _familiarity(self, images: Tensor, scores: Tensor) -> Tensor:
        """Log of a number in [0, 1], high for images like those that the model knows, shape ``(N,)``.

        In logs its gradient stays alive where the number is all but 0, which is where attacks need it.
        """
        logs = functional.log_softmax(scores, dim=1)
        if self.by == "confidence":
            return logs.amax(dim=1)
        squeezed = functional.log_softmax(self.model(Median(size=2).change(images)), dim=1)
        return torch.minimum(logs, squeezed).logsumexp(dim=1)


@register_defense("detector")
@dataclass(frozen=True)
class Detector(Defense):
    """A detector at inference time, whose threshold is set on clean validation images.

    A rejected clean image counts as wrong. A rejected attacked image counts as right; attacks see scores of model and
    detector together. ``confidence`` is the largest probability (Hendrycks and Gimpel, "A baseline for detecting
    misclassified and out-of-distribution examples", 2017); ``squeezing`` the agreement of the probabilities with those
    after a median filter of two by two pixels, one minus half their L1 distance (Xu et al., "Feature squeezing", 2018).

    Attributes:
        by: What is low where an image is rejected.
        false_alarms: Share of clean validation images to reject, at the most.
    """

    by: By = "confidence"
    false_alarms: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def wrap(self, model: Classifier) -> Classifier:
        """The model with the detector; nothing is rejected before ``calibrate``."""
        return Detecting(model, self.by, self.false_alarms)
