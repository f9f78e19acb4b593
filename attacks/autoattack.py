"""AutoAttack: the ensemble of that name, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from robbench.attacks._ensemble import in_turn, passes_in_turn
from robbench.attacks.apgd import APGD
from robbench.attacks.fab import FAB
from robbench.attacks.square import Square
from robbench.core.contracts import Attack, Classifier, Loss
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Draw, Streams
from robbench.core.threat_model import Threat

_STEPS = 100


def _parts(restarts: int, targets: int) -> Mapping[Draw, Attack]:
    return MappingProxyType(
        {
            "apgd-ce": APGD("ce", steps=_STEPS, restarts=restarts),
            "apgd-t": APGD("dlr", steps=_STEPS, targets=targets),
            "fab-t": FAB(steps=_STEPS, targets=9),
            "square": Square(queries=5000, p_init=0.8),
        }
    )


_PARTS = _parts(restarts=1, targets=9)
_PARTS_L1 = _parts(restarts=5, targets=5)


@register_attack("autoattack", norms=("linf", "l2", "l1"), brief="AutoAttack, standard ensemble")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack in its standard form (Croce and Hein, "Reliable evaluation of adversarial robustness", ICML 2020).

    In this order, each only on what survived the last: Auto-PGD on cross-entropy, targeted Auto-PGD on the difference
    of logits ratio, targeted FAB, and Square with 5,000 queries; 100 steps, one restart, the nine likeliest other
    classes as targets. In L1 its parts are those of Croce and Hein, "Mind the box", ICML 2021, with five restarts of
    the first and five targets of the second. It has no parameters: an ensemble that differs in any part has another
    name. With ten classes a sample that is never fooled costs about
    7,900 forward and 1,900 backward passes.
    """

    white_box: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("ce", "margin", "dlr")

    @property
    def gradient_steps(self) -> int:
        """Steps of its gradient attacks."""
        return _STEPS

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images that fool the model where one of the attacks found them."""
        return in_turn(_PARTS_L1 if threat.norm == "l1" else _PARTS, model, images, labels, threat, rng)

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Targets, and fewer classes than the targeted ratio needs."""
        if threat.targeted:
            return "autoattack has no targeted form"
        if num_classes < 4:
            return f"autoattack needs four classes for its targeted ratio, not {num_classes}; use strong instead"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The sum over its attacks, and a forward pass on what each returned; in Linf and L2, where it is more."""
        return passes_in_turn(_PARTS, num_classes)
