"""Images that fool other models, tried on this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._ensemble import SubstituteAttack, in_turn
from robbench.attacks.pgd import PGD
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw, Streams
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
        return PeerTransfer(self.steps, tuple(peers)) if peers else self


@dataclass(frozen=True)
class PeerTransfer(Attack):
    """Projected gradient descent on each of some models in turn.

    Attributes:
        steps: Gradient steps on each.
        peers: The models.
    """

    steps: int
    peers: tuple[Classifier, ...]

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The images made on the first model that fool the one under attack, or those made on the last."""
        pgd = PGD(steps=self.steps, random_start=False, early_stop=False)
        attacks: dict[Draw, Attack] = {
            ("peer", number): SubstituteAttack(pgd, peer) for number, peer in enumerate(self.peers)
        }
        return in_turn(attacks, model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """A forward pass for each model; what they spend themselves is not counted."""
        return len(self.peers), 0
