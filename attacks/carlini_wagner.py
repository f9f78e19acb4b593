"""Carlini and Wagner's attack: Adam on the size of the change and a hinge on the margin, inside the box by tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import score_gradient, succeeded
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, lead, search_weight, size_of
from robbench.attacks._projections import per_sample
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat

# Where pixels at 0 and 1 start, in [-1, 1]: the ends of the tanh lie at infinity, and close to them it is all but flat.
_INSIDE = 0.999
_ADAM = (0.9, 0.999, 1e-8)


@register_attack("carlini-wagner", norms=("l2",), brief="Carlini-Wagner L2 attack")
@dataclass(frozen=True)
class CarliniWagner(MinimalNormAttack):
    """Carlini and Wagner's L2 attack ("Towards evaluating the robustness of neural networks", 2017, section VI.A).

    Minimizes ``‖change‖₂² + c * max(lead + confidence, 0)`` by Adam over an unbounded variable whose tanh is the image;
    the lead is the margin of scores that the attacker has yet to overcome. The hinge stays open until the hard decision
    has fallen. The smallest c that works is searched for each sample by itself, and of all images that were passed
    through the model the nearest that fools it is returned, the image itself where none did.
    Costs at most ``1 + search_steps * steps`` forward and ``search_steps * steps`` backward passes.

    Attributes:
        search_steps: Values of c to try: ten times the last while nothing fools the model, then bisection.
        steps: Steps of Adam for each c.
        lr: Its learning rate.
        confidence: The lead of scores over the decision that the result shall have, beyond a fallen decision.
        c: The first c.
        abort_early: Whether a sample leaves when a tenth of the steps has not lowered its objective by a share of 1e-4.
    """

    search_steps: Annotated[int, Field(ge=1)] = 9
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.01
    confidence: Annotated[float, Field(ge=0)] = 0.0
    c: Annotated[float, Field(gt=0)] = 1e-3
    abort_early: bool = True

    def search(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The nearest of all images passed through the model that fool it."""
        nearest = Nearest.to(images)
        search_weight(
            lambda weight: self._descend(model, images, labels, threat.targeted, weight, nearest),
            torch.full((len(images),), self.c, dtype=images.dtype, device=images.device),
            self.search_steps,
        )
        return nearest.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the images."""
        return 1 + self.search_steps * self.steps, self.search_steps * self.steps

    def _descend(
        self, model: Classifier, images: Tensor, labels: Tensor, targeted: bool, weights: Tensor, nearest: Nearest
    ) -> Tensor:
        active = torch.arange(len(images), device=images.device)
        arrived = torch.zeros_like(active, dtype=torch.bool)
        last = torch.full_like(weights, torch.inf)
        variable = torch.atanh((2 * images - 1).clamp(-_INSIDE, _INSIDE))
        mean, square = torch.zeros_like(images), torch.zeros_like(images)
        for step in range(1, self.steps + 1):
            clean, given, weight = images[active], labels[active], weights[active]
            current = (1 + variable.tanh()) / 2
            gradient, leads, decisions = score_gradient(model.subset(active), current, lead(given, targeted))
            fooled = succeeded(decisions, given, targeted)
            if self.confidence:
                fooled &= leads <= -self.confidence
            change = current - clean
            sizes = size_of(change, "l2")
            nearest.offer(active, current, sizes, fooled)
            arrived[active[fooled]] = True

            slope = 2 * change + per_sample(torch.where(fooled, 0, weight), images) * gradient
            slope = slope * 2 * current * (1 - current)
            mean = _ADAM[0] * mean + (1 - _ADAM[0]) * slope
            square = _ADAM[1] * square + (1 - _ADAM[1]) * slope**2
            scale = (square / (1 - _ADAM[1] ** step)).sqrt() + _ADAM[2]
            variable = variable - self.lr * mean / (1 - _ADAM[0] ** step) / scale

            if self.abort_early and step % max(1, self.steps // 10) == 0:
                objective = sizes**2 + torch.where(fooled, 0, weight * (leads + self.confidence))
                stays = objective < (1 - 1e-4) * last[active]
                last[active] = objective.to(last.dtype)
                active, variable, mean, square = active[stays], variable[stays], mean[stays], square[stays]
                if len(active) == 0:
                    break
        return arrived
