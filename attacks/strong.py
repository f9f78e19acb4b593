"""The ensemble for every model: few classes, votes of neighbors, a fifth of AutoAttack's cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._ensemble import SubstituteAttack, in_turn, passes_in_turn
from robbench.attacks.apgd import APGD
from robbench.attacks.square import Square
from robbench.core.contracts import Attack, Classifier, Loss
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Threat


@register_attack("strong", norms=("linf", "l2", "l1"), brief="APGD, then random search")
@dataclass(frozen=True)
class Strong(Attack):
    """Auto-PGD on cross-entropy, then towards the likeliest other classes, then search without gradients.

    In this order, each only on what survived the last: Auto-PGD on cross-entropy; on the margin, through each of the
    model's further scores (a nearest-neighbor model has several that follow its vote); targeted Auto-PGD on the
    difference of logits ratio; Square. The parts are those of AutoAttack (Croce and Hein, 2020; in L1 2021) without FAB
    and with fewer steps, targets and queries. It works with any number of classes from two on.
    Costs at most, with ten classes and no further scores, 610 forward and 300 backward passes; each of the further
    scores adds ``steps`` of both and two forward passes.

    Attributes:
        steps: Steps of every run of Auto-PGD.
        targets: Other classes to make for, those with the highest scores first.
        queries: Of the search without gradients.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    targets: Annotated[int, Field(ge=1)] = 5
    queries: Annotated[int, Field(ge=1)] = 300

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce", "margin", "dlr")

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where one of the attacks found them."""
        parts = dict(self._parts(model.surrogates, threat.targeted))
        return in_turn(parts, model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over its attacks, and a forward pass on what each returned; without further scores."""
        return passes_in_turn(dict(self._parts((), targeted=False)), num_classes)

    def _parts(self, surrogates: tuple[str, ...], targeted: bool) -> Iterator[tuple[Draw, Attack]]:
        yield "apgd-ce", APGD("ce", steps=self.steps)
        for name in surrogates:
            yield f"apgd-margin through {name}", SubstituteAttack(APGD("margin", steps=self.steps), name)
        if targeted:
            yield "apgd-dlr", APGD("dlr", steps=self.steps)
        else:
            yield "apgd-t", APGD("dlr", steps=self.steps, targets=self.targets)
        yield "square", Square(queries=self.queries)
