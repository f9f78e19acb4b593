"""The ensemble for every model: few classes, votes of neighbors, a seventeenth of AutoAttack's passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from robbench.attacks._ensemble import Anew, SubstituteAttack, chain, passes_of_chain
from robbench.attacks.apgd import APGD
from robbench.attacks.ascent import MomentumAscent
from robbench.attacks.sparse_rs import SparseRS
from robbench.attacks.square import Square
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

_OTHER_LOSSES: tuple[Loss, ...] = ("ce", "dlr")
_P_INIT = 0.15
"""The share of the image that the first squares of a search cover."""


@register_attack("strong", norms=("linf", "l2", "l1", "l0"), brief="Ascent from where search ends")
@dataclass(frozen=True)
class Strong(Attack):
    """Momentum ascent on the margin, then rounds of search without gradients and ascent from where the search ended.

    In this order, each from where the one before ended and only on what survived it: ascent from the image; in every
    round, Square from stripes of its own and ascent in shorter steps from its end point; ascent towards each of the
    classes that came nearest at any point so far, from a random corner of the ball; two long ascents from the image on
    cross-entropy and on the difference of logits ratio, which lead further on deep networks. The first ascents and
    those after a search also follow each of the model's further scores (a nearest-neighbor model has several that
    follow its vote, and needs five times the steps towards a class). In L1 the ascents are those of Auto-PGD, which
    begin in larger balls; in L0 there is one search, Sparse-RS. It works with any number of classes from two on.

    Ascent on the margin after a search finds what both miss alone, since gradients near the image lead elsewhere.
    Costs at most, with ten classes and no further scores, 388 forward and 180 backward passes.

    Attributes:
        steps: Of the first ascent; three quarters of them after a search, half of them towards a class, two and a half
            times as many on the other losses.
        queries: Of each search.
        rounds: Of search and ascent.
        targets: Classes to make for.
    """

    steps: Annotated[int, Field(ge=1)] = 20
    queries: Annotated[int, Field(ge=1)] = 100
    rounds: Annotated[int, Field(ge=0)] = 2
    targets: Annotated[int, Field(ge=0)] = 3

    version: ClassVar[int] = 3
    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin", *_OTHER_LOSSES)

    @property
    def gradient_steps(self) -> int:
        """Of the ascents one after the other, but for those towards classes."""
        return self.steps + self.rounds * self._after

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where one of the parts found them."""
        return chain(dict(self.parts(threat.norm, model.surrogates)), model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over its parts in Linf and L2, where it is more, without further scores."""
        forwards, backwards = passes_of_chain(dict(self.parts("linf", ())), num_classes)
        # The classes that came nearest are known by then.
        return forwards - bool(self.targets), backwards

    def parts(self, norm: Norm, surrogates: tuple[str, ...]) -> Iterator[tuple[str, Attack]]:
        """The parts in their order by name; ascents through further scores of the model, which are named, as well."""
        after, towards = self._after, -(-(5 if surrogates else 1) * self.steps // 2)
        first: Attack = MomentumAscent(steps=self.steps, start="image")
        climb: Attack = MomentumAscent(steps=after, rel_step=0.5, momentum=0.25)
        last: Attack = MomentumAscent(steps=towards, targets=self.targets, start="corner")
        if norm == "l1":
            first, climb = APGD("margin", steps=self.steps), APGD("margin", steps=after)
            last = APGD("margin", steps=towards, targets=self.targets)
        yield from through_all("ascent", first, surrogates)
        if norm == "l0":
            # Its schedule needs many queries in a row, and classes that came near tell little.
            if self.rounds:
                yield "search", Anew(SparseRS(self.rounds * (self.queries + after) - after))
                yield from through_all("climb", climb, surrogates)
            return
        for number in range(self.rounds):
            yield f"search {number}", Anew(Square(self.queries, _P_INIT))
            yield from through_all(f"climb {number}", climb, surrogates)
        if self.targets:
            yield "towards", last
        for loss in _OTHER_LOSSES:
            steps = -(-5 * self.steps // 2)
            yield f"ascent on {loss}", APGD(loss, steps) if norm == "l1" else MomentumAscent(loss, steps, start="image")

    @property
    def _after(self) -> int:
        return -(-3 * self.steps // 4)


def through_all(name: str, part: Attack, surrogates: tuple[str, ...]) -> Iterator[tuple[str, Attack]]:
    """A part on the model's usual scores and on each of the further ones."""
    yield name, part
    for surrogate in surrogates:
        yield f"{name} through {surrogate}", SubstituteAttack(part, surrogate)
