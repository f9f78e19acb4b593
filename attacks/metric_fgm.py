"""The fast gradient method through the loss that the model was trained with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robbench.attacks.fgm import FGM
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

SURROGATE = "metric-loss"
"""Name of the scores that are minus the metric loss of each class."""


@register_attack("metric-fgm", norms=("linf", "l2", "l1"), brief="FGM on the training loss")
@dataclass(frozen=True)
class MetricFGM(FGM):
    """FGM on the loss that the model was trained with (weak against nearest-neighbor models).

    Taken by the letter, this is the fast gradient method (Goodfellow et al., "Explaining and harnessing", 2015): one
    step that raises the training loss. With a metric loss the image is the anchor, and the gallery holds its positives
    and negatives, which stay where they are. The prediction is a vote, which that loss does not follow, so this reading
    is no measure of robustness; ``fgm`` goes through the vote. Models without a metric loss were trained on
    cross-entropy, and there this is ``fgm`` itself.
    Costs one forward and one backward pass.
    """

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images one step away, clipped to [0, 1]."""
        try:
            metric = model.surrogate(SURROGATE)
        except KeyError:
            return super().perturb(model, images, labels, threat, rng)
        sign = 1.0 if threat.targeted else -1.0
        return self._step(metric, images, lambda scores: sign * scores.gather(1, labels[:, None])[:, 0], threat)
