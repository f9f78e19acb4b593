"""Unequal weights in the loss instead of equal counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robbench.core.contracts import Balancer
from robbench.core.registry import register_balancer


@register_balancer("class-weights")
@dataclass(frozen=True)
class ClassWeights(Balancer):
    """Class weights in the loss: w_c = N / N_c, the number of all training images over that of the class."""

    def refusal(self, counts: Tensor) -> str | None:
        """A class without images would weigh infinitely much."""
        return "a class has no training image" if bool((counts == 0).any()) else None

    def class_weights(self, counts: Tensor) -> Tensor:
        """N / N_c, float, shape ``(K,)``."""
        return counts.sum() / counts
