"""Randomized smoothing as a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.certificate import Certificate, Certified, NoCertificate
from robbench.core.contracts import Classifier
from robbench.core.registry import register_certificate
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.defenses.smoothing import Smoothed

_SELECTION, _ESTIMATION = -1, -2
"""Streams of noise that no attack and no judge draws from."""


def certified_radius(successes: int, draws: int, sigma: float, alpha: float) -> float:
    """The L2 radius within which the smoothed prediction is proven not to change (Cohen et al., 2019, ``Certify``).

    The prediction must have been chosen on draws other than these, or before them.

    Args:
        successes: Draws with the prediction in question.
        draws: Draws in all.
        sigma: Standard deviation of the noise, which the radius is in units of.
        alpha: Chance, at most, that the radius is too large.

    Returns:
        σ Φ⁻¹(p), with p the one-sided lower bound of Clopper and Pearson (1934) at level ``alpha``; 0 where p is not
        above one half.
    """
    from scipy.stats import beta, norm

    lower = float(beta.ppf(alpha, successes, draws - successes + 1)) if successes else 0.0
    return max(0.0, sigma * float(norm.ppf(lower)))


@register_certificate("smoothing", norms=("l2",))
@dataclass(frozen=True)
class SmoothingBound(Certificate):
    """Randomized smoothing with exact binomial bounds and abstention (``Certify`` of Cohen et al., 2019).

    It is about the class that is the most likely under noise, of models that the defense ``smoothing`` stands in front
    of. Their predictions are votes of few draws, which may miss that class near the border of the radius: each proof
    says how likely that is, and the audit allows for it.

    Attributes:
        n0: Draws that select the class; an image of which that is not the prediction is abstained on.
        n: Draws that bound its probability.
        alpha: Chance, at most, that a radius is too large.
    """

    n0: Annotated[int, Field(ge=1)] = 100
    n: Annotated[int, Field(ge=1)] = 10_000
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001

    by_queries: ClassVar[bool] = True

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """Radii of the images whose prediction is selected and has a probability above one half.

        Raises:
            NoCertificate: If the model is no smoothed one.
        """
        if not isinstance(model, Smoothed):
            raise NoCertificate(f"{type(model).__name__} draws no Gaussian noise: put the defense smoothing in front")
        before = model.stream
        try:
            model.redraw(_SELECTION)
            selected = model.counts(images, self.n0).argmax(dim=1)
            model.redraw(_ESTIMATION)
            counts = model.counts(images, self.n).gather(1, labels[:, None])[:, 0]
        finally:
            model.redraw(before)
        counts = torch.where(selected == labels, counts, 0)
        found = [certified_radius(int(count), self.n, model.sigma, self.alpha) for count in counts]
        radius = torch.tensor(found, dtype=torch.float64, device=images.device)
        return Certified(radius, self._chance(radius, threat, model))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """One forward pass for each draw."""
        return self.n0 + self.n, 0

    def _chance(self, radius: Tensor, threat: Threat, model: Smoothed) -> Tensor:
        """At most ``alpha``, and that of a vote of few draws to miss a class as likely as is proved at eps."""
        from scipy.stats import binom, norm

        votes = model.votes
        least = norm.cdf((radius.cpu().numpy() - threat.radius) / model.sigma)
        missed = torch.from_numpy(binom.cdf(votes // 2, votes, least)).to(radius)
        return torch.where(radius > 0, (missed + self.alpha).clamp(max=1), 0.0)
