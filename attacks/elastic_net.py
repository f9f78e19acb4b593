"""The elastic-net attack: iterative shrinkage on L1 and L2 size of the change and a hinge on the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import score_gradient, succeeded
from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, lead, search_weight, size_of
from robbench.attacks._projections import per_sample
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.threat_model import Threat


@register_attack("elastic-net", norms=("l1",))
@dataclass(frozen=True)
class ElasticNet(MinimalNormAttack):
    """Elastic-net attack, EAD (Chen et al., "EAD: Elastic-net attacks", AAAI 2018, algorithm 1).

    Lowers ``c * max(lead + confidence, 0) + ‖change‖₂² + beta * ‖change‖₁`` by accelerated iterative shrinkage (FISTA):
    the first two terms by gradient steps whose length falls with a square root, the third by setting changes up to beta
    to zero and shortening the others by beta. The lead is the margin of scores that the attacker has yet to overcome.
    The hinge stays open until the hard decision has fallen. The smallest c that works is searched for each sample by
    itself; of all images shrunk so the best that fools the model is returned, the image itself where none did.
    Samples that c is too small to move at all leave after the first step.
    Costs at most ``1 + 2 * search_steps * steps`` forward and ``search_steps * steps`` backward passes.

    Attributes:
        search_steps: Values of c to try: ten times the last while nothing fools the model, then bisection.
        steps: Steps for each c.
        lr: Length of the first step.
        beta: Threshold of the shrinkage, in units of a [0, 1] pixel.
        confidence: The lead of scores over the decision that the result shall have, beyond a fallen decision.
        c: The first c.
        rule: Which is the best of the images that fool the model: that with the least ``l1``, or ``elastic-net`` size.
    """

    search_steps: Annotated[int, Field(ge=1)] = 9
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.01
    beta: Annotated[float, Field(ge=0)] = 1e-3
    confidence: Annotated[float, Field(ge=0)] = 0.0
    c: Annotated[float, Field(gt=0)] = 1e-3
    rule: Literal["l1", "elastic-net"] = "l1"

    def search(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        """The best of all images after shrinkage that fool the model."""
        nearest = Nearest.to(images)
        search_weight(
            lambda weight: self._descend(model, images, labels, threat.targeted, weight, nearest),
            torch.full((len(images),), self.c, dtype=images.dtype, device=images.device),
            self.search_steps,
        )
        return nearest.images

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Per step a gradient where momentum has carried the image, and a decision; a forward pass on the images."""
        return 1 + 2 * self.search_steps * self.steps, self.search_steps * self.steps

    def _descend(
        self, model: Classifier, images: Tensor, labels: Tensor, targeted: bool, weights: Tensor, nearest: Nearest
    ) -> Tensor:
        active = torch.arange(len(images), device=images.device)
        arrived = torch.zeros_like(active, dtype=torch.bool)
        current = ahead = images
        for step in range(self.steps):
            view, clean, given, weight = model.subset(active), images[active], labels[active], weights[active]
            margin = lead(given, targeted)
            gradient, leads, decisions = score_gradient(view, ahead, margin)
            weighed = torch.where(self._fooled(leads, decisions, given, targeted), 0, weight)
            slope = 2 * (ahead - clean) + per_sample(weighed, images) * gradient
            change = ahead - clean - self.lr * (1 - step / self.steps) ** 0.5 * slope
            shrunk = change.sign() * (change.abs() - self.beta).clamp(min=0)
            before, current = current, (clean + shrunk).clamp(0, 1)
            # Models need not bear values outside [0, 1], where momentum alone would go.
            ahead = (current + step / (step + 3) * (current - before)).clamp(0, 1)

            with torch.no_grad():
                scores, decisions = view.decide(current)
            leads = margin(scores)
            fooled = self._fooled(leads, decisions, given, targeted)
            l1, l2 = size_of(current - clean, "l1"), size_of(current - clean, "l2")
            elastic = self.beta * l1 + l2**2
            nearest.offer(active, current, l1 if self.rule == "l1" else elastic, fooled)
            arrived[active[fooled]] = True

            # Steps only get shorter: what the threshold holds at the image now, it holds for good.
            moving = l1 > 0 if step == 0 else torch.ones_like(fooled)
            if not bool(moving.all()):
                active, current, ahead = active[moving], current[moving], ahead[moving]
            if len(active) == 0:
                break
        return arrived

    def _fooled(self, leads: Tensor, decisions: Tensor, labels: Tensor, targeted: bool) -> Tensor:
        fooled = succeeded(decisions, labels, targeted)
        return fooled & (leads <= -self.confidence) if self.confidence else fooled
