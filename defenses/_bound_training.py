"""The shared parts of training towards certificates: schedules, and bounds of margins that can be differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.certificates._bounds import network_of, propagate
from robbench.core.certificate import NoCertificate
from robbench.core.contracts import Classifier, Defense
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch


@dataclass(frozen=True)
class BoundTraining(Defense):
    """Training on a bound of the loss over a ball in Linf, mixed with the loss on clean images.

    ``kappa * L(f(x)) + (1 - kappa) * L(-m)``, where m are lower bounds of the margins over all changes, within [0, 1].
    After a start on clean images alone, eps grows linearly from 0 and the share of the clean loss falls from 1.
    Bounds are in float32 at any precision. They count as two forward and backward passes, of centers and radii, and one
    forward pass, which batch normalization goes by.

    Attributes:
        eps: Largest change; the data set's reference where it is None.
        kappa: Share of the clean loss at the end.
        clean: Share of training, at the start, on clean images alone.
        ramp: Share of training after that, over which eps grows and the share of the clean loss falls.
    """

    takes_mixed_labels = False

    eps: Annotated[float, Field(gt=0, le=1)] | None = None
    kappa: Annotated[float, Field(ge=0, le=1)] = 0.5
    clean: Annotated[float, Field(ge=0, le=1)] = 0.05
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def uses_scores(self) -> bool:
        """It does."""
        return True

    def network_refusal(self, model: Classifier, image_shape: tuple[int, int, int]) -> str | None:
        """Why its layers cannot be bounded, or None."""
        try:
            network_of(model, torch.zeros(1, *image_shape))
        except NoCertificate as error:
            return str(error)
        return None

    def grown(self, progress: float) -> float:
        """How far eps has grown, from 0 to 1."""
        if progress < self.clean:
            return 0.0
        return min(1.0, (progress - self.clean) / self.ramp) if self.ramp else 1.0

    def linear_share(self, batch: Batch) -> float:
        """The share of margins by linear bounds, in [0, 1]; the rest are by interval bounds."""
        return 0.0

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Those of centers and radii, and one that batch normalization goes by."""
        return 3, 2

    def margins(self, batch: Batch) -> Tensor:
        """Lower bounds of the label's score minus each score, shape ``(N, K)``; 0 at the label."""
        linear, count = self.linear_share(batch), len(batch.images)
        eps = self.grown(batch.progress) * (batch.eps if self.eps is None else self.eps)
        classes = batch.model.num_classes
        forwards, backwards = self.passes(classes) if linear else BoundTraining.passes(self, classes)
        batch.spent(forwards * count, backwards * count)
        return batch.asked(_margins, batch.images, batch.labels, eps, linear)

    def training_loss(self, batch: Batch) -> Tensor:
        """The mixed loss, a scalar; a balancer's class weights weigh both terms."""
        clean = batch.score_loss(batch.scores(batch.images))
        grown = self.grown(batch.progress)
        if grown == 0:
            return clean
        kappa = 1 - (1 - self.kappa) * grown
        return kappa * clean + (1 - kappa) * batch.score_loss(-self.margins(batch))


def _margins(model: Classifier, images: Tensor, labels: Tensor, eps: float, linear: float) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        bounds = propagate(network_of(model, images), images, Threat("linf", eps))
        found = bounds.margins(labels, linear=False)
        if linear:
            found = torch.lerp(found, bounds.margins(labels, linear=True), linear)
        return found.scatter(1, labels.unsqueeze(1), 0.0)
