"""AutoAttack: the ensemble of that name in the three versions of its authors, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from robbench.attacks._ensemble import in_turn, passes_in_turn
from robbench.attacks.apgd import APGD
from robbench.attacks.fab import FAB
from robbench.attacks.square import Square
from robbench.core.attack import Attack, Loss
from robbench.core.component import AskedAs, OmittedAtDefault
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Threat

_STEPS = 100
_DRAWS = 20
_LOSSES: tuple[Loss, ...] = ("ce", "margin", "dlr")


def _ensemble(**parts: Attack) -> Mapping[Draw, Attack]:
    return MappingProxyType({name.replace("_", "-"): part for name, part in parts.items()})


def _standard(restarts: int, targets: int) -> Mapping[Draw, Attack]:
    return _ensemble(
        apgd_ce=APGD("ce", steps=_STEPS, restarts=restarts),
        apgd_t=APGD("dlr", steps=_STEPS, targets=targets),
        fab_t=FAB(steps=_STEPS, targets=9),
        square=Square(queries=5000, p_init=0.8),
    )


_PARTS = {
    "standard": _standard(restarts=1, targets=9),
    "plus": _ensemble(
        apgd_ce=APGD("ce", steps=_STEPS, restarts=5),
        apgd_dlr=APGD("dlr", steps=_STEPS, restarts=5),
        fab=FAB(steps=_STEPS, targets=0, restarts=5),
        square=Square(queries=5000, p_init=0.8),
        apgd_t=APGD("dlr", steps=_STEPS, targets=9),
        fab_t=FAB(steps=_STEPS, targets=9),
    ),
    "rand": _ensemble(
        apgd_ce=APGD("ce", steps=_STEPS, eot=_DRAWS),
        apgd_dlr=APGD("dlr", steps=_STEPS, eot=_DRAWS),
    ),
}
_STANDARD_L1 = _standard(restarts=5, targets=5)


@register_attack("autoattack", norms=("linf", "l2", "l1"), brief="AutoAttack, three versions")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020), and nothing else.

    Each part runs only on what survived the last, for 100 steps. ``standard``: Auto-PGD on cross-entropy, targeted
    Auto-PGD on the difference of logits ratio, targeted FAB, and Square with 5,000 queries; one restart, the nine
    likeliest other classes as targets. In L1 its parts are those of Croce and Hein, "Mind the box", ICML 2021, with
    five restarts of the first and five targets of the second.

    ``plus``, for a last look: Auto-PGD on cross-entropy and untargeted on the ratio, untargeted FAB, these three with
    five restarts, Square, targeted Auto-PGD and targeted FAB. Its authors made it for Linf and L2; in L1 it is the same
    with the Auto-PGD of "Mind the box". ``rand``, for random defenses: both untargeted Auto-PGD with gradients averaged
    over 20 draws (EOT), without search. On a model that draws nothing it is weaker than ``standard`` and the averages
    are wasted, which boards say. A fooling image is one that fools the model in most of the draws; the authors take
    the last draw alone.

    An ensemble that differs in any part has another name. With ten classes a sample that is never fooled costs about
    7,900 forward and 1,900 backward passes; 9,800 and 7,300 for ``plus``; 4,000 of each for ``rand``.

    Attributes:
        form: Asked for as ``version``: ``standard``, ``plus`` or ``rand``.
    """

    form: Annotated[Literal["standard", "plus", "rand"], AskedAs("version"), OmittedAtDefault] = "standard"

    white_box: ClassVar[bool] = True

    @property
    def black_box(self) -> bool:  # type: ignore[override]
        """Whether search is among its parts."""
        return any(part.black_box for part in _PARTS[self.form].values())

    @property
    def losses(self) -> tuple[Loss, ...]:  # type: ignore[override]
        """Those of its parts."""
        followed = {loss for part in _PARTS[self.form].values() for loss in part.losses}
        return tuple(loss for loss in _LOSSES if loss in followed)

    @property
    def gradient_steps(self) -> int:
        """Steps of its gradient attacks."""
        return _STEPS

    @property
    def averaged_draws(self) -> int:
        """Draws that gradients are averaged over."""
        return max(part.averaged_draws for part in _PARTS[self.form].values())

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where one of the attacks found them."""
        parts = _STANDARD_L1 if (self.form, threat.norm) == ("standard", "l1") else _PARTS[self.form]
        return in_turn(parts, model, images, labels, threat, rng)

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Targets, and fewer classes than the ratio needs, four for its targeted form."""
        if threat.targeted:
            return "autoattack has no targeted form"
        if self.form == "rand" and num_classes < 3:
            return f"autoattack needs three classes for its ratio, not {num_classes}; use apgd-margin[eot={_DRAWS}]"
        if self.form != "rand" and num_classes < 4:
            return f"autoattack needs four classes for its targeted ratio, not {num_classes}; use strong instead"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over its attacks, and a forward pass on what each returned; in Linf and L2, where it is more."""
        return passes_in_turn(_PARTS[self.form], num_classes)
