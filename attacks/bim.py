"""The basic iterative method: many small fast gradient steps from the image itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._survivors import Kept, Survivors
from robbench.attacks.pgd import PGD
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat


@register_attack("bim", norms=("linf", "l2", "l1"))
@dataclass(frozen=True)
class BIM(ContinuingAttack):
    """Basic iterative method (Kurakin, Goodfellow and Bengio, "Adversarial examples in the physical world", 2017).

    Projected gradient descent on cross-entropy without a random start; in L2 and L1 by normalized steps. Steps are
    ``1.25 * eps / steps`` long, which is the paper's rule of 1.25 steps of one gray level for every gray level of eps.
    Confident scores stop it as they stop ``pgd``.
    Costs at most ``steps + 1`` forward and ``steps`` backward passes.

    Attributes:
        steps: Steps; the paper takes 10 at 8/255.
        early_stop: Whether a sample leaves the batch at the first iterate that fools the model.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    early_stop: bool = True

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce",)

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The latest iterates that fool the model, or the last ones."""
        return self._pgd().search(left, threat, start)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate."""
        return self._pgd().passes(num_classes)

    def _pgd(self) -> PGD:
        return PGD(self.steps, rel_step=1.25 / self.steps, random_start=False, early_stop=self.early_stop)
