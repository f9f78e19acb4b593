"""The ensemble for every model: few classes, votes of neighbors, a twenty-sixth of AutoAttack's passes."""

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

_P_INIT = 0.15
"""The share of the image that the first squares of a search cover."""


@register_attack("strong", norms=("linf", "l2", "l1", "l0"), brief="Ascent from where search ends")
@dataclass(frozen=True)
class Strong(Attack):
    """A long ascent on the soft margin, a search without gradients, and ascents on the margin from where that ended.

    In this order, each only on what survived the ones before: momentum ascent on the soft margin from the image, in the
    direction of cross-entropy, which leads furthest on deep networks; Square from stripes of its own; ascent on the
    margin in shorter steps from the end of the search, which finds what both miss alone, since gradients near the image
    lead elsewhere; ascent on the margin towards each of the classes that came nearest at any point so far, from a
    random corner of the ball. The first two ascents also follow each of the model's further scores (a nearest-neighbor
    model has several that follow its vote); such a model needs five times the steps towards three times as many
    classes. In L1 the ascents are those of Auto-PGD, which begin in larger balls; in L0 the search is Sparse-RS and
    nothing follows the ascent after it. It works with any number of classes from two on.

    Costs at most, with ten classes and no further scores, 281 forward and 89 backward passes.

    Attributes:
        steps: Of the first ascent; three tenths of them after the search, half as many as those towards a class.
        queries: Of the search.
        targets: Classes to make for.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    queries: Annotated[int, Field(ge=1)] = 187
    targets: Annotated[int, Field(ge=0)] = 3

    version: ClassVar[int] = 4
    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    @property
    def gradient_steps(self) -> int:
        """Of the ascents one after the other, but for those towards classes."""
        return self.steps + self._after

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
        after, each = self._after, -(-self._after // 2)
        towards, goals = (5 * each, 3 * self.targets) if surrogates else (each, self.targets)
        first: Attack = MomentumAscent("soft-margin", self.steps, start="image")
        search: Attack = Square(self.queries, _P_INIT)
        climb: Attack = MomentumAscent("margin", after, rel_step=0.5, momentum=0.25)
        last: Attack = MomentumAscent("margin", towards, targets=goals, start="corner")
        if norm == "l1":
            first, climb = APGD("soft-margin", self.steps), APGD("margin", after)
            last = APGD("margin", towards, targets=goals)
        if norm == "l0":
            # Its schedule needs many queries in a row, and classes that came near tell little.
            search = SparseRS(self.queries)
        yield from through_all("ascent", first, surrogates)
        yield "search", Anew(search)
        yield from through_all("climb", climb, surrogates)
        if self.targets and norm != "l0":
            yield "towards", last

    @property
    def _after(self) -> int:
        return -(-3 * self.steps // 10)


def through_all(name: str, part: Attack, surrogates: tuple[str, ...]) -> Iterator[tuple[str, Attack]]:
    """A part on the model's usual scores and on each of the further ones."""
    yield name, part
    for surrogate in surrogates:
        yield f"{name} through {surrogate}", SubstituteAttack(part, surrogate)
