"""The losses that attacks raise, as functions of the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from robbench.core.attack import Loss

Gain: TypeAlias = Callable[[Tensor], Tensor]
"""From scores ``(N, K)`` to one value per sample ``(N,)``."""

AnyLoss: TypeAlias = Loss | Literal["soft-margin"]
"""What the ascents raise: one of the losses by which rows are audited, or ``soft-margin``."""


def gain(loss: AnyLoss, labels: Tensor, targeted: bool) -> Gain:
    """The loss of an attack away from classes, or towards them from whichever other class has the highest score.

    Args:
        loss: ``ce``, ``margin``, ``soft-margin``, or ``dlr``, which is replaced by the margin where there are fewer
            than three classes, fewer than four to reach one.
        labels: Classes to leave, or targets to reach, int64, shape ``(N,)``.
        targeted: Whether the labels are targets.

    Returns:
        A function from scores ``(N, K)`` to values ``(N,)``.
    """

    def values(scores: Tensor) -> Tensor:
        if targeted:
            return gain_towards(loss, others(scores, labels).argmax(dim=1), labels)(scores)
        return _AWAY[_possible(loss, scores, least=3)](scores, labels)

    return values


def gain_towards(loss: AnyLoss, labels: Tensor, targets: Tensor) -> Gain:
    """The loss of an attack that is to change the prediction from given classes to given others.

    Args:
        loss: ``ce``, ``margin``, ``soft-margin``, or ``dlr``, which is replaced by the margin where there are fewer
            than four classes.
        labels: Classes to leave, int64, shape ``(N,)``.
        targets: Classes to reach, int64, shape ``(N,)``.

    Returns:
        A function from scores ``(N, K)`` to values ``(N,)``.
    """
    return lambda scores: _TOWARDS[_possible(loss, scores, least=4)](scores, labels, targets)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labels, shape ``(N,)``; from scores ``(N, K)``."""
    return functional.cross_entropy(scores, labels, reduction="none")


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Best other score minus that of the label, shape ``(N,)``: positive where another class is predicted."""
    return others(scores, labels).amax(dim=1) - _at(scores, labels)


def soft_margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Logarithm of the sum of the others' exponentials minus the label's score, shape ``(N,)``.

    It grows with cross-entropy and its gradient has the same direction, but does not vanish where a model is certain.
    """
    return others(scores, labels).logsumexp(dim=1) - _at(scores, labels)


def dlr(scores: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, shape ``(N,)``: the margin over the gap between the first and the third score.

    It is invariant to scale and shift of the scores (Croce and Hein, "Reliable evaluation of adversarial robustness
    with an ensemble of diverse parameter-free attacks", 2020, equation 6). Needs three classes.
    """
    best = scores.sort(dim=1, descending=True).values
    return margin(scores, labels) / _positive(best[:, 0] - best[:, 2])


def cross_entropy_towards(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Minus the cross-entropy of the targets, shape ``(N,)``."""
    return -cross_entropy(scores, targets)


def soft_margin_towards(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Minus the soft margin over the targets, shape ``(N,)``."""
    return -soft_margin(scores, targets)


def margin_towards(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Score of the target minus that of the label, shape ``(N,)``."""
    return _at(scores, targets) - _at(scores, labels)


def dlr_towards(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio, shape ``(N,)`` (Croce and Hein, 2020, equation 7).

    Unlike the untargeted ratio it is not constant where the target has the third score. Needs four classes.
    """
    best = scores.sort(dim=1, descending=True).values
    return margin_towards(scores, labels, targets) / _positive(best[:, 0] - (best[:, 2] + best[:, 3]) / 2)


def others(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores ``(N, K)`` with those of the labels at -inf."""
    return scores.scatter(1, labels[:, None], -torch.inf)


def likeliest_others(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """The classes but the labels with the highest scores, those first, int64, shape ``(N, min(count, K - 1))``."""
    ranked = others(scores, labels).argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(count, scores.shape[1] - 1)]


_AWAY = {"ce": cross_entropy, "dlr": dlr, "margin": margin, "soft-margin": soft_margin}
_TOWARDS = {
    "ce": cross_entropy_towards,
    "dlr": dlr_towards,
    "margin": margin_towards,
    "soft-margin": soft_margin_towards,
}


def audited(loss: AnyLoss) -> Loss:
    """The loss by which a row is audited on which this one was raised: the soft margin is flat only where that is."""
    return "margin" if loss == "soft-margin" else loss


def _possible(loss: AnyLoss, scores: Tensor, least: int) -> AnyLoss:
    return "margin" if loss == "dlr" and scores.shape[1] < least else loss


def _at(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None])[:, 0]


def _positive(gap: Tensor) -> Tensor:
    # Where all scores in question are equal, a ratio of zeros would be no number.
    return torch.where(gap > 0, gap, 1.0)
