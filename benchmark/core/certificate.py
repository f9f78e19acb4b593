"""What certificates do: the contract that built-in methods and plugins fulfil."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robbench.core.component import Component
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


class NoCertificate(Exception):
    """A method cannot certify a model, for the reason in the message, which is one line."""


@dataclass(frozen=True)
class Certified:
    """What is proved of ``N`` images.

    Attributes:
        radius: The size of change, in the norm and the units of the threat model, up to which the prediction is proved
            to stay; 0 where nothing is proved. float64, shape ``(N,)``.
        chance: The chance, at most, that a change within the threat's eps alters the model's prediction although the
            radius reaches so far; 0 for proofs that are certain. float64, shape ``(N,)``; None for 0 throughout.
    """

    radius: Tensor
    chance: Tensor | None = None

    @classmethod
    def where(cls, proved: Tensor, threat: Threat) -> Certified:
        """Radii of a method that answers for one eps: that eps where it is proved, 0 elsewhere.

        Args:
            proved: bool, shape ``(N,)``.
            threat: What was asked.
        """
        return cls(proved.double() * threat.radius)


@dataclass(frozen=True)
class Certificate(Component):
    """A way to prove that no change within a ball alters a prediction. What it claims must hold for every image."""

    by_queries: ClassVar[bool] = False
    """Whether it works by asking the model, so that its passes are counted; bounds pass through the layers instead."""

    @abc.abstractmethod
    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """Prove radii.

        Args:
            model: The model, in evaluation mode, its weights frozen.
            images: Float in [0, 1], shape ``(N, C, H, W)``; not to be written to.
            labels: The model's predictions on them, int64, shape ``(N,)``.
            threat: The norm, and the eps that must be reached: larger radii are welcome and never needed. Changed
                images lie in [0, 1] as well.
            rng: One stream of random numbers per sample.

        Raises:
            NoCertificate: If the method cannot bound this model.
        """

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes that one sample costs at the most; none where it does not ask the model."""
        return 0, 0


def no_radii(images: Tensor) -> Tensor:
    """Zeros, float64, one for each image."""
    return torch.zeros(len(images), dtype=torch.float64, device=images.device)
