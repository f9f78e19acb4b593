"""The elastic-net attack: iterative shrinkage on L1 and L2 size of the change and a hinge on the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, hinge_open, lead, search_c, size_of, steepness
from robbench.attacks._projections import per_sample
from robbench.attacks._survivors import Survivors
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm


@register_attack("elastic-net", norms=("l1",))
@dataclass(frozen=True)
class ElasticNet(MinimalNormAttack):
    """Elastic-net attack, EAD (Chen et al., "EAD: Elastic-net attacks", AAAI 2018, algorithm 1).

    Lowers ``c * max(lead + confidence, 0) + ‖change‖₂² + beta * ‖change‖₁`` by accelerated iterative shrinkage (FISTA):
    the first two terms by gradient steps whose length falls with a square root, the third by setting changes up to beta
    to zero and shortening the others by beta. The lead is the margin of scores that the attacker has yet to overcome.
    The hinge stays open until the hard prediction is wrong. The smallest c that works is searched for each sample by
    itself, in units that no scale of the scores changes; of all images shrunk so the best that fools the model is
    returned, the image itself where none did.
    Samples that c is too small to move at all leave after the first step.
    Costs at most ``1 + 2 * search_steps * steps`` forward and ``search_steps * steps`` backward passes.

    Attributes:
        search_steps: Values of c to try: ten times the last while nothing fools the model, then bisection.
        steps: Steps for each c.
        lr: Length of the first step.
        beta: Threshold of the shrinkage, in units of a [0, 1] pixel.
        confidence: Kappa, the margin by which the scores must be wrong as well; 0 asks for a wrong prediction only.
        c: The first c, for leads that fall by 1 per unit of L2 norm at the image.
        rule: Which is the best of the images that fool the model: that with the least ``l1``, or ``elastic-net`` size.
    """

    search_steps: Annotated[int, Field(ge=1)] = 9
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.01
    beta: Annotated[float, Field(ge=0)] = 1e-3
    confidence: Annotated[float, Field(ge=0)] = 0.0
    c: Annotated[float, Field(gt=0)] = 0.1
    rule: Literal["l1", "elastic-net"] = "l1"

    version: ClassVar[int] = 2

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Try every c."""
        search_c(self._minimize, left, self.c, self.search_steps, nearest)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Per step a gradient where momentum has carried the image, and a prediction; a forward pass on the images."""
        return 1 + 2 * self.search_steps * self.steps, self.search_steps * self.steps

    def _minimize(self, left: Survivors, c: Tensor, nearest: Nearest) -> Tensor:
        """Lower ``c * max(lead(x_k) + kappa, 0) + ‖x_k - x‖₂² + beta * ‖x_k - x‖₁``; momentum looks ahead to y_k."""
        kappa, beta = self.confidence, self.beta
        succeeded, c = torch.zeros_like(c, dtype=torch.bool), c[left.index]
        x_k = y_k = left.images
        for k in range(self.steps):
            x, objective = left.images, lead(left)
            g, leads, fooled = left.gradient(y_k, objective)
            if k == 0:
                c = c / steepness(g)
            slope = 2 * (y_k - x) + per_sample(torch.where(hinge_open(fooled, leads, kappa), c, 0), x) * g
            change = y_k - x - self.lr * (1 - k / self.steps) ** 0.5 * slope
            shrunk = change.sign() * (change.abs() - beta).clamp(min=0)
            before, x_k = x_k, (x + shrunk).clamp(0, 1)
            # Models need not bear values outside [0, 1], where momentum alone would go.
            y_k = (x_k + k / (k + 3) * (x_k - before)).clamp(0, 1)

            leads, fooled = left.look(x_k, objective)
            fooled = ~hinge_open(fooled, leads, kappa)
            l1, l2 = size_of(x_k - x, "l1"), size_of(x_k - x, "l2")
            nearest.offer(left, x_k, l1 if self.rule == "l1" else beta * l1 + l2**2, fooled)
            succeeded[left.index[fooled]] = True

            # Steps only get shorter: what the threshold holds at the image now, it holds for good.
            if k == 0:
                moves = l1 > 0
                left, c, x_k, y_k = left[moves], c[moves], x_k[moves], y_k[moves]
                if not left:
                    break
        return succeeded
