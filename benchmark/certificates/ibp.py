"""Interval bounds as a certificate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robbench.certificates._bounds import proved
from robbench.core.certificate import Certificate, Certified
from robbench.core.contracts import Classifier
from robbench.core.registry import register_certificate
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_certificate("ibp", norms=("linf", "l2", "l1"))
@dataclass(frozen=True)
class IntervalBounds(Certificate):
    """Interval bounds through every layer (IBP, Gowal et al., 2018).

    Bounds are in float64, and a margin must exceed all that rounding can change of the model's own scores.
    """

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """The threat's eps where the label's score stays the largest; see ``proved``."""
        return proved(model, images, labels, threat, linear=False)
