"""The ensemble for hard cases: long searches with many small steps after them, in AutoAttack's passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._ensemble import Anew, chain, passes_of_chain
from robbench.attacks.apgd import APGD
from robbench.attacks.ascent import MomentumAscent
from robbench.attacks.sparse_rs import SparseRS
from robbench.attacks.square import Square
from robbench.attacks.strong import Strong, through_all
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

_OTHER_LOSSES: tuple[Loss, ...] = ("dlr", "margin")
# Lengths of first steps as shares of eps, with the share of the steps that a round makes so: after a long search only
# small steps lead further.
_CLIMBS = ((0.25, 0.6), (0.12, 0.4))
# The share of the image that the first squares of a search cover.
_P_INIT = 0.3


@register_attack("thorough", norms=("linf", "l2", "l1", "l0"), brief="Long searches, small steps")
@dataclass(frozen=True)
class Thorough(Attack):
    """``strong``, its first ascent on other losses, and rounds of a long search and many small steps from its end.

    The search is without gradients, the steps raise the margin. Costs at most, with ten classes and no further scores,
    9,047 forward and 689 backward passes, about as many as
    AutoAttack, whether or not anything is left to find.

    Attributes:
        queries: Of each long search.
        steps: Of the ascents after it.
        rounds: Of search and ascents.
    """

    queries: Annotated[int, Field(ge=1)] = 4080
    steps: Annotated[int, Field(ge=2)] = 250
    rounds: Annotated[int, Field(ge=1)] = 2

    version: ClassVar[int] = 3  # to be raised with that of Strong, which it begins with
    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = (*Strong.losses, "dlr")

    @property
    def gradient_steps(self) -> int:
        """Of its ascents one after the other."""
        return Strong().gradient_steps + self.rounds * self.steps

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where one of the parts found them."""
        return chain(dict(self._parts(threat.norm, model.surrogates)), model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over its parts in Linf and L2, without further scores."""
        forwards, backwards = passes_of_chain(dict(self._parts("linf", ())), num_classes)
        return forwards - 1, backwards  # the classes that came nearest are known when strong asks for them

    def _parts(self, norm: Norm, surrogates: tuple[str, ...]) -> Iterator[tuple[str, Attack]]:
        strong = Strong()
        yield from strong.parts(norm, surrogates)
        for loss in _OTHER_LOSSES:
            ascent = APGD(loss, strong.steps) if norm == "l1" else MomentumAscent(loss, strong.steps, start="image")
            yield f"ascent on {loss}", ascent
        for number in range(self.rounds):
            search: Attack = SparseRS(self.queries) if norm == "l0" else Square(self.queries, _P_INIT)
            yield f"long search {number}", Anew(search)
            for size, share in _CLIMBS:
                climb = self._climb(norm, round(share * self.steps), size)
                yield from through_all(f"climb {number} by {size}", climb, surrogates)

    def _climb(self, norm: Norm, steps: int, size: float) -> Attack:
        return APGD("margin", steps=steps) if norm == "l1" else MomentumAscent("margin", steps, size, momentum=0.5)
