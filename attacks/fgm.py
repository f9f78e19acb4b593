"""The fast gradient method: one step along the gradient, as long as the ball allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robbench.attacks._gradients import score_gradient, steepest_step
from robbench.attacks._losses import Gain, gain
from robbench.attacks._projections import project
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("fgsm", norms=("linf", "l2", "l1"), brief="Fast gradient sign method")
@register_attack("fgm", norms=("linf", "l2", "l1"), brief="Fast gradient method")
@dataclass(frozen=True)
class FGM(Attack):
    """Fast gradient (sign) method: one step of size eps (Goodfellow et al., "Explaining and harnessing", 2015).

    In Linf the step is ``eps * sign(gradient)``, in L2 along the normalized gradient, in L1 on the values with the
    largest gradients as far as [0, 1] has room. ``fgsm`` and ``fgm`` are two names of it. On a linear model with two
    classes it is the strongest attack there is in Linf and L1, and in L2 as long as no value leaves [0, 1]; but only
    while cross-entropy has a gradient, which in float32 ends where scores lie more than about 100 apart. The audit
    flags that.
    Costs one forward and one backward pass.
    """

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images one step away, clipped to [0, 1]."""
        return self._step(model, images, gain("ce", labels, threat.targeted), threat)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One forward and one backward pass."""
        return 1, 1

    def _step(self, model: Classifier, x: Tensor, objective: Gain, threat: Threat) -> Tensor:
        g, _, _ = score_gradient(model, x, objective)
        return project(x, steepest_step(x, g, threat.norm, threat.radius), threat.norm, threat.radius)
