"""The shared parts of defenses that preprocess images."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robbench.core.contracts import Classifier, Defense

Change = Callable[[Tensor], Tensor]


class Preprocessed(Classifier):
    """A model behind a change of its images, of which it answers everything.

    Args:
        model: The model.
        change: From images to images of the same shape, dtype and device.
        gradients: How gradients pass the change: ``exact``; ``straight-through``, as if it were the identity (BPDA,
            Athalye et al., "Obfuscated gradients give a false sense of security", 2018, section 4.1.1); or ``none``.
    """

    def __init__(self, model: Classifier, change: Change, gradients: str) -> None:
        super().__init__()
        self.model, self.change, self.gradients = model, change, gradients
        self.num_classes, self.surrogates, self.training = model.num_classes, model.surrogates, model.training
        self.draws, self.votes, self.rejects = model.draws, model.votes, model.rejects

    def preprocess(self, images: Tensor) -> Tensor:
        """The changed images, to the last bit what ``change`` returns."""
        if self.gradients == "exact":
            return self.change(images)
        if self.gradients == "straight-through":
            changed: Tensor = _StraightThrough.apply(images, self.change)
            return changed
        with torch.no_grad():
            return self.change(images)

    def forward(self, images: Tensor) -> Tensor:
        """The model's scores of the changed images, shape ``(N, K)``."""
        scores: Tensor = self.model(self.preprocess(images))
        return scores

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output on the changed images, shape ``(N, D)``."""
        return self.model.embed(self.preprocess(images))

    def predict(self, images: Tensor) -> Tensor:
        """The model's hard predictions on the changed images, int64, shape ``(N,)``."""
        return self.model.predict(self.preprocess(images))

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores and hard predictions on the changed images."""
        return self.model.decide(self.preprocess(images))

    def weighed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The model's scores of the changed images, and by how much it accepts them."""
        return self.model.weighed(self.preprocess(images))

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the model's thresholds on changed images."""
        self.model.calibrate(self.preprocess(batch) for batch in batches)

    def subset(self, index: Tensor) -> Classifier:
        """The same for some samples of the batch at hand."""
        return Preprocessed(self.model.subset(index), self.change, self.gradients)

    def surrogate(self, name: str) -> Classifier:
        """Other scores of the model, behind the same change.

        Raises:
            KeyError: If the model has none of that name.
        """
        return Preprocessed(self.model.surrogate(name), self.change, self.gradients)


class _StraightThrough(torch.autograd.Function):
    # images + (change(images) - images).detach() would do but for rounding.
    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Change) -> Tensor:
        return change(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class DifferentiablePreprocessing(Defense):
    """A differentiable change of the images in front of a trained model; training goes without it."""

    @abc.abstractmethod
    def change(self, images: Tensor) -> Tensor:
        """The images as the model is to see them.

        Args:
            images: Floats, shape ``(N, C, H, W)``; in [0, 1] unless another defense adds noise to them.
        """

    def wrap(self, model: Classifier) -> Classifier:
        """The model behind the change."""
        return Preprocessed(model, self.change, self.gradients)


@dataclass(frozen=True)
class Preprocessing(DifferentiablePreprocessing):
    """A change of the images in front of a trained model that is never differentiated; training goes without it.

    Attributes:
        straight_through: Whether gradients pass the exact change as if it were not there. Without, there are none, and
            attacks that need them fail for a reason that has nothing to do with robustness.
    """

    straight_through: bool = True

    @property
    def gradients(self) -> str:  # type: ignore[override]
        """How gradients pass: ``straight-through`` or ``none``."""
        return "straight-through" if self.straight_through else "none"
