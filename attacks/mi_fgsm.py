"""The momentum iterative method: steps along the gradients gathered so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._continuing import ContinuingAttack
from robbench.attacks._projected_ascent import keep_last, projected_ascent
from robbench.attacks._projections import l1_direction
from robbench.attacks._survivors import Kept, Survivors
from robbench.core.attack import Loss
from robbench.core.best_points import BestPoints
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat


@register_attack("mi-fgsm", norms=("linf", "l2"), brief="FGSM iterated with momentum")
@dataclass(frozen=True)
class MIFGSM(ContinuingAttack):
    """Momentum iterative fast gradient sign method (Dong et al., "Boosting adversarial attacks with momentum", 2018).

    Algorithm 1 in Linf, its equation 8 in L2, on cross-entropy: every step is ``eps / steps`` long and follows the
    sum of the gradients so far, each brought to L1 norm 1, earlier ones weighted down. A sample that is fooled at any
    iterate stays fooled: the latest such iterate is returned, otherwise the last one. Confident scores stop it as they
    stop ``pgd``.
    Costs at most ``steps`` passes of each kind; a forward pass more without ``early_stop``.

    Attributes:
        steps: Steps.
        decay: Weight of the sum so far at every step; with 0 there is no momentum.
        early_stop: Whether a sample leaves the batch at the first iterate that fools the model; images meant for other
            models gain from all steps.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    decay: Annotated[float, Field(ge=0)] = 1.0
    early_stop: bool = True

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce",)

    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The latest iterates that fool the model, or the last ones."""
        x_0 = left.images if start is None else start.images
        kept, g = Kept.of(left.images), torch.zeros_like(left.images)

        def accumulated(left: Survivors, gradient: Tensor) -> Tensor:
            """``g_{t+1} = mu g_t + ∇ / ‖∇‖₁`` (equation 6)."""
            g[left.index] = self.decay * g[left.index] + l1_direction(gradient)
            return g[left.index]

        stops, alpha = self.early_stop and not left.model.votes, threat.radius / self.steps
        left, x_t = projected_ascent(left, x_0, threat, alpha, self.steps, stops, kept, accumulated)
        keep_last(left, x_t, kept, asked=kept.fooled[left.index])
        return kept

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """A look at the last iterate more."""
        return self.steps + 1, self.steps

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate where an earlier one fooled."""
        return self.steps + (not self.early_stop), self.steps
