"""Training on fast gradient examples that are made anew in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import input_gradient, steepest_step
from robbench.attacks._projections import project
from robbench.core.contracts import Defense
from robbench.core.errors import RequestError
from robbench.core.registry import register_defense
from robbench.core.threat_model import asked_threat
from robbench.core.training_step import Batch


@register_defense("fgm")
@dataclass(frozen=True)
class FGMTraining(Defense):
    """Adversarial training with the fast gradient method (Goodfellow et al., 2015, section 6).

    The loss is ``alpha * L(x) + (1 - alpha) * L(x + step)``; no gradient flows through the step.

    Attributes:
        eps: Size of the step; the data set's reference in Linf where it is None.
        norm: Norm in which the step has that size.
        alpha: Share of the loss on the images as they are.
    """

    eps: Annotated[float, Field(gt=0)] | None = None
    norm: Literal["linf", "l2", "l1"] = "linf"
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.5

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            RequestError: If one does not fit, or another norm than Linf comes without an eps.
        """
        super().__post_init__()
        try:
            asked_threat(self.norm, self.eps)
        except ValueError as error:
            raise RequestError(f"eps = {self.eps}: {error}") from None
        if self.norm != "linf" and self.eps is None:
            raise RequestError(f"norm = {self.norm!r} needs an eps: the data set's reference is one in Linf")

    def training_loss(self, batch: Batch) -> Tensor:
        """The mixed loss, a scalar."""
        eps = batch.eps if self.eps is None else self.eps
        gradient = input_gradient(lambda images: batch.attack_loss(images, batch.images), batch.images)
        step = steepest_step(batch.images, gradient, self.norm, eps)
        attacked = batch.loss(project(batch.images, step, self.norm, eps))
        return attacked if self.alpha == 0 else self.alpha * batch.loss(batch.images) + (1 - self.alpha) * attacked
