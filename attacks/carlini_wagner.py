"""Carlini and Wagner's attack: Adam on the size of the change and a hinge on the margin, inside the box by tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._minimum_norm import MinimalNormAttack, Nearest, hinge_open, lead, search_c, size_of, steepness
from robbench.attacks._projections import per_sample
from robbench.attacks._survivors import Survivors, staying
from robbench.core.registry import register_attack
from robbench.core.threat_model import Norm

# Where pixels at 0 and 1 start, in [-1, 1]: the ends of the tanh lie at infinity, and close to them it is all but flat.
_INSIDE = 0.999
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@register_attack("carlini-wagner", norms=("l2",), brief="Carlini-Wagner L2 attack")
@dataclass(frozen=True)
class CarliniWagner(MinimalNormAttack):
    """Carlini and Wagner's L2 attack ("Towards evaluating the robustness of neural networks", 2017, section VI.A).

    Minimizes ``‖change‖₂² + c * max(lead + confidence, 0)`` by Adam over an unbounded variable whose tanh is the image;
    the lead is the margin of scores that the attacker has yet to overcome. The hinge stays open until the hard
    prediction is wrong. The smallest c that works is searched for each sample by itself, in
    units that no scale of the scores changes. Of all images that were passed through the model, the nearest that fools
    it is returned; the image itself where none did.
    Costs at most ``1 + search_steps * steps`` forward and ``search_steps * steps`` backward passes.

    Attributes:
        search_steps: Values of c to try: ten times the last while nothing fools the model, then bisection.
        steps: Steps of Adam for each c.
        lr: Its learning rate.
        confidence: Kappa, the margin by which the scores must be wrong as well; 0 asks for a wrong prediction only.
        c: The first c, for leads that fall by 1 per unit of L2 norm at the image; on a linear model the least c that
            works is twice the distance to the boundary.
        abort_early: Whether a sample leaves when a tenth of the steps has not lowered its objective by a share of 1e-4.
    """

    search_steps: Annotated[int, Field(ge=1)] = 9
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.01
    confidence: Annotated[float, Field(ge=0)] = 0.0
    c: Annotated[float, Field(gt=0)] = 0.1
    abort_early: bool = True

    version: ClassVar[int] = 2

    def search(self, left: Survivors, norm: Norm, nearest: Nearest) -> None:
        """Try every c."""
        search_c(self._minimize, left, self.c, self.search_steps, nearest)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One pass of each kind per step, and a forward pass on the images."""
        return 1 + self.search_steps * self.steps, self.search_steps * self.steps

    def _minimize(self, left: Survivors, c: Tensor, nearest: Nearest) -> Tensor:
        """Lower ``‖x' - x‖₂² + c * max(lead(x') + kappa, 0)`` over w, where ``x' = (1 + tanh w) / 2``."""
        kappa, succeeded, c = self.confidence, torch.zeros_like(c, dtype=torch.bool), c[left.index]
        w = torch.atanh((2 * left.images - 1).clamp(-_INSIDE, _INSIDE))
        m, v, last = torch.zeros_like(w), torch.zeros_like(w), torch.full_like(c, torch.inf)
        for t in range(1, self.steps + 1):
            x = (1 + w.tanh()) / 2
            g, leads, fooled = left.gradient(x, lead(left))
            if t == 1:
                c = c / steepness(g)
            change, pulls = x - left.images, hinge_open(fooled, leads, kappa)
            sizes = size_of(change, "l2")
            nearest.offer(left, x, sizes, ~pulls)
            succeeded[left.index[~pulls]] = True

            slope = 2 * change + per_sample(torch.where(pulls, c, 0), x) * g
            slope = slope * 2 * x * (1 - x)
            m = _BETA_1 * m + (1 - _BETA_1) * slope
            v = _BETA_2 * v + (1 - _BETA_2) * slope**2
            w = w - self.lr * m / (1 - _BETA_1**t) / ((v / (1 - _BETA_2**t)).sqrt() + _EPSILON)

            if self.abort_early and t % max(1, self.steps // 10) == 0:
                objective = sizes**2 + torch.where(pulls, c * (leads + kappa), 0)
                stays, last = objective < (1 - 1e-4) * last, objective.to(last.dtype)
                left, c, last, w, m, v = staying(stays, left, c, last, w, m, v)
                if not left:
                    break
        return succeeded
