"""Images that fool other models, tried on this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import succeeded
from robbench.attacks.pgd import PGD
from robbench.core.contracts import Attack, Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat


@register_attack("transfer", norms=("linf", "l2", "l1"), brief="PGD on the other models")
@dataclass(frozen=True)
class Transfer(Attack):
    """Projected gradient descent on every other model of the grid in turn (Papernot et al., "Transferability", 2016).

    The other models are those trained on the same data with the same seed. A sample leaves at the first of them whose
    image fools the model under attack; otherwise the image made on the last one is returned. Descent starts at the
    image and goes on after the other model is fooled, since what fools by more transfers better.
    Costs one forward pass for each other model, so that only what ``bind`` returns can tell how many; what the other
    models spend is not counted.

    Attributes:
        steps: Gradient steps on each other model.
    """

    steps: Annotated[int, Field(ge=1)] = 20

    targetable: ClassVar[bool] = True
    needs_peers: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Not without other models.

        Raises:
            RequestError: Always.
        """
        raise RequestError("transfer works through the other models of a grid, and there are none")

    def bind(self, peers: Sequence[Classifier]) -> Attack:
        """The attack through these models, if there are any."""
        return _Through(self.steps, tuple(peers)) if peers else self


@dataclass(frozen=True)
class _Through(Attack):
    steps: int
    peers: tuple[Classifier, ...]

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        result = images.clone()
        active = torch.arange(len(images), device=images.device)
        on_peer = PGD(steps=self.steps, random_start=False, early_stop=False)
        for number, peer in enumerate(self.peers):
            if len(active) == 0:
                break
            streams = rng[active].fork("peer", number)
            found = on_peer.perturb(peer, images[active], labels[active], threat, streams)
            result[active] = found
            with torch.no_grad():
                decisions = model.subset(active).predict(found)
            active = active[~succeeded(decisions, labels[active], threat.targeted)]
        return result

    def passes(self, num_classes: int) -> tuple[int, int]:
        """A forward pass for each other model."""
        return len(self.peers), 0
