"""Published attacks with few passes, in the settings that the table of verdict against passes compares: a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robbench import (
    APGD,
    Anew,
    Attack,
    MomentumAscent,
    Square,
    Streams,
    Threat,
    chain,
    passes_of_chain,
    register_attack,
)
from robbench.attacks._ensemble import in_turn, passes_in_turn
from robbench.core.attack import Loss
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Draw


class Probabilities(Classifier):
    """A model whose scores are probabilities."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        return scores.softmax(dim=1)

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embed(images)

    def subset(self, index: Tensor) -> Probabilities:
        return Probabilities(self.model.subset(index))


@dataclass(frozen=True)
class _Chain(Attack):
    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)
    parts: ClassVar[dict[str, Attack]] = {}

    @property
    def gradient_steps(self) -> int:
        """Those of the first part."""
        return 20

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where a part found them."""
        return chain(dict(self.parts), model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over the parts."""
        return passes_of_chain(dict(self.parts), num_classes)


@register_attack("mm-like", norms=("linf", "l2"), brief="Three targets, 20 steps each")
@dataclass(frozen=True)
class MinimumMarginLike(_Chain):
    """Targeted margins of the three likeliest classes, 20 cosine steps each from the image (after Gao et al., 2022)."""

    parts: ClassVar[dict[str, Attack]] = {"towards": MomentumAscent(steps=20, momentum=0, targets=3, start="image")}


@register_attack("pma-like", norms=("linf", "l2"), brief="Margin of probabilities")
@dataclass(frozen=True)
class ProbabilityMarginLike(_Chain):
    """The margin of probabilities, 100 steps from a corner (after the probability margin attack, 2024)."""

    parts: ClassVar[dict[str, Attack]] = {"ascent": MomentumAscent(steps=100, start="corner")}

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where the ascent found them."""
        return super().perturb(Probabilities(model), images, labels, threat, rng)


@register_attack("a3-like", norms=("linf", "l2"), brief="Restarts from where runs ended")
@dataclass(frozen=True)
class AdaptiveLike(_Chain):
    """Ten runs of 25 steps on the margin, each towards another of the nearest classes (after Liu et al., 2022)."""

    parts: ClassVar[dict[str, Attack]] = {
        "first": MomentumAscent(steps=25, momentum=0, start="corner"),
        "towards": MomentumAscent(steps=25, momentum=0, targets=9, start="corner"),
    }


@register_attack("margin-first", norms=("linf", "l2"), brief="strong, margin from the start")
@dataclass(frozen=True)
class MarginFirst(_Chain):
    """``strong`` whose first ascent is on the margin like the others."""

    parts: ClassVar[dict[str, Attack]] = {
        "ascent": MomentumAscent(steps=50, start="image"),
        "search": Anew(Square(187, 0.15)),
        "climb": MomentumAscent(steps=15, rel_step=0.5, momentum=0.25),
        "towards": MomentumAscent(steps=8, targets=3, start="corner"),
    }


@register_attack("no-search", norms=("linf", "l2"), brief="strong with gradients instead")
@dataclass(frozen=True)
class NoSearch(_Chain):
    """``strong`` without its search, with as many passes spent on more targets."""

    parts: ClassVar[dict[str, Attack]] = {
        "ascent": MomentumAscent("soft-margin", steps=50, start="image"),
        "towards": MomentumAscent(steps=14, targets=9, start="corner"),
    }


@register_attack("no-climb", norms=("linf", "l2"), brief="strong, climb from the image")
@dataclass(frozen=True)
class NoClimb(_Chain):
    """``strong`` whose ascent after the search starts at the image again instead of where the search ended."""

    parts: ClassVar[dict[str, Attack]] = {
        "ascent": MomentumAscent("soft-margin", steps=50, start="image"),
        "search": Anew(Square(187, 0.15)),
        "climb": MomentumAscent(steps=15, rel_step=0.5, momentum=0.25, start="image"),
        "towards": MomentumAscent(steps=8, targets=3, start="corner"),
    }


@register_attack("two-rounds", norms=("linf", "l2"), brief="Short ascents, two searches")
@dataclass(frozen=True)
class TwoRounds(_Chain):
    """Ascents on the margin alone, and two short searches."""

    parts: ClassVar[dict[str, Attack]] = {
        "ascent": MomentumAscent(steps=20, start="image"),
        "search": Anew(Square(100, 0.15)),
        "climb": MomentumAscent(steps=15, rel_step=0.5, momentum=0.25),
        "search again": Anew(Square(100, 0.15)),
        "climb again": MomentumAscent(steps=15, rel_step=0.5, momentum=0.25),
        "towards": MomentumAscent(steps=10, targets=3, start="corner"),
    }


@register_attack("strong-before", norms=("linf", "l2", "l1"), brief="strong as it was")
@dataclass(frozen=True)
class StrongBefore(Attack):
    """The first version of ``strong``: its parts side by side."""

    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce", "margin", "dlr")
    parts: ClassVar[dict[Draw, Attack]] = {
        "apgd-ce": APGD("ce", steps=50),
        "apgd-t": APGD("dlr", steps=50, targets=5),
        "square": Square(queries=300),
    }

    @property
    def gradient_steps(self) -> int:
        """Of each run."""
        return 50

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where a part found them."""
        return in_turn(dict(self.parts), model, images, labels, threat, rng)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over the parts."""
        return passes_in_turn(dict(self.parts), num_classes)
