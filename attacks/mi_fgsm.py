"""The momentum iterative method: steps along the gradients gathered so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import cross_entropy_gain, score_gradient, steepest_step, succeeded
from robbench.attacks._projections import per_sample, project
from robbench.core.contracts import Attack, Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("mi-fgsm", norms=("linf", "l2"), brief="FGSM iterated with momentum")
@dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative fast gradient sign method (Dong et al., "Boosting adversarial attacks with momentum", 2018).

    Algorithm 1 in Linf, its equation 8 in L2, on cross-entropy: every step is ``eps / steps`` long and follows the
    sum of the gradients so far, each brought to L1 norm 1, earlier ones weighted down. A sample that is fooled at any
    iterate stays fooled: the latest such iterate is returned, otherwise the last one.
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

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The latest iterates that fool the model, or the last ones."""
        norm, eps, targeted = threat.norm, threat.radius, threat.targeted
        best, current, momentum = images.clone(), images.clone(), torch.zeros_like(images)
        fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        active = torch.arange(len(images), device=images.device)
        for _ in range(self.steps):
            if len(active) == 0:
                break
            gain = cross_entropy_gain(labels[active], targeted)
            gradient, _, decisions = score_gradient(model.subset(active), current[active], gain)
            hit = succeeded(decisions, labels[active], targeted)
            best[active[hit]], fooled[active[hit]] = current[active[hit]], True
            if self.early_stop and not model.votes:
                active, gradient = active[~hit], gradient[~hit]
            momentum[active] = self.decay * momentum[active] + _l1_direction(gradient)
            center, here = images[active], current[active]
            step = steepest_step(here, momentum[active], norm, eps / self.steps)
            current[active] = project(center, here - center + step, norm, eps)
        # The very last iterate of a sample that nothing has fooled is returned whether or not it fools.
        asked = active[fooled[active]]
        if len(asked):
            with torch.no_grad():
                decisions = model.subset(asked).predict(current[asked])
            hit = asked[succeeded(decisions, labels[asked], targeted)]
            best[hit] = current[hit]
        return torch.where(per_sample(fooled, images), best, current)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the last iterate where an earlier one fooled."""
        return self.steps + (not self.early_stop), self.steps


def _l1_direction(gradient: Tensor) -> Tensor:
    """Every sample scaled to L1 norm 1; zero stays zero. Gradients as small as the dtype holds do not vanish."""
    largest = gradient.flatten(1).abs().amax(dim=1)
    scaled = gradient / per_sample(torch.where(largest > 0, largest, 1.0), gradient)
    sizes = scaled.flatten(1).abs().sum(dim=1)
    return scaled / per_sample(torch.where(sizes > 0, sizes, 1.0), gradient)
