"""What attacks have in common that can start where another one ended."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from robbench.attacks._survivors import Kept, Survivors
from robbench.core.attack import Attack
from robbench.core.best_points import BestPoints, unknown_lead
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@dataclass(frozen=True)
class ContinuingAttack(Attack):
    """An attack that can start where another one ended, and says where it ended itself."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The best images found from the attack's own start."""
        return self.search(Survivors.of(model, images, labels, threat, rng), threat, None).images

    def advance(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        start: BestPoints | None = None,
    ) -> BestPoints:
        """The best points found from where another attack ended."""
        lead = unknown_lead(images, model.num_classes) if start is None else start.lead.clone()
        kept = self.search(Survivors.of(model, images, labels, threat, rng, lead), threat, start)
        return BestPoints(kept.images, kept.value, kept.fooled, lead)

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """As alone: where it ended is known."""
        return self.passes(num_classes)

    @abc.abstractmethod
    def search(self, left: Survivors, threat: Threat, start: BestPoints | None) -> Kept:
        """The best points.

        Args:
            left: The samples; what is asked through them is taken note of.
            threat: What is allowed.
            start: Where to start; None for the attack's own start.
        """
