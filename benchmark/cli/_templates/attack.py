"""The attack my-attack: one gradient step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from robbench import (
    Attack,
    Classifier,
    Streams,
    Threat,
    input_gradient,
    project,
    register_attack,
    steepest_step,
)
from torch import Tensor
from torch.nn.functional import cross_entropy


@register_attack(
    "my-attack",
    norms=("linf", "l2"),
    brief="One gradient step",
)
@dataclass(frozen=True)
class MyAttack(Attack):
    """One gradient step on the cross-entropy, toward the border of the ball.

    Costs a forward and a backward pass.

    Attributes:
        size: Length of the step, as a share of eps.
    """

    size: Annotated[float, Field(gt=0, le=1)] = 1.0

    white_box: ClassVar[bool] = True
    targetable: ClassVar[bool] = True
    losses: ClassVar = ("ce",)

    def perturb(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
    ) -> Tensor:
        """Changed images inside the ball; see ``robbench.Attack.perturb``."""
        assert threat.eps is not None
        sign = -1 if threat.targeted else 1

        def gain(x: Tensor) -> Tensor:
            return sign * cross_entropy(model(x), labels, reduction="sum")

        gradient = input_gradient(gain, images)
        step = steepest_step(images, gradient, threat.norm, self.size * threat.eps)
        return project(images, step, threat.norm, threat.eps)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes that one sample costs at the most."""
        return 1, 1
