"""Per sample, whether a condition tells of robustness, succeeded, and by how large a change. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.results.schema import Bools, Floats, Outcome

_CHANGE = ("clean", "final", "rejected", "linf", "l2", "l1", "l0")


def judged(outcome: Outcome) -> Bools:
    """Which samples tell of robustness; bool, shape ``(N,)``.

    With one target for all, a sample of that class is already where it should be brought to: the condition is not
    tried on it, which proves nothing. So of attacks and chains, samples whose clean prediction is right count only
    where they were attempted.
    """
    if outcome.kind not in ("attack", "chain", "union"):
        return np.ones(len(outcome), dtype=np.bool_)
    kept: Bools = outcome.attempted | (outcome.clean != outcome.labels)
    return kept


def succeeded(outcome: Outcome) -> Bools:
    """Where the condition reached its target, or a wrong prediction where it has none; bool, shape ``(N,)``."""
    reached = np.where(outcome.targets >= 0, outcome.final == outcome.targets, outcome.final != outcome.labels)
    success: Bools = np.logical_and(outcome.attempted, reached)
    return success


def distances(outcome: Outcome, norm: str, eps: float | None = None) -> Floats:
    """The size of the change with which the condition succeeded on each sample; float64, shape ``(N,)``.

    0 where the clean prediction is wrong, infinite where the condition did not succeed. Where every target is tried in
    turn, any wrong prediction is a success, as in robust accuracy: an attempt may end in a class it did not aim at.

    Args:
        outcome: Of an attack.
        norm: In which to measure.
        eps: Largest norm allowed, or None; what lies above it within the referee's tolerance counts as eps.
    """
    sizes = np.minimum(getattr(outcome, norm), np.inf if eps is None else eps)
    in_turn = outcome.every_target.shape[1] > 0
    success = outcome.attempted & (outcome.final != outcome.labels) if in_turn else succeeded(outcome)
    return np.where(outcome.clean != outcome.labels, 0.0, np.where(success, sizes, np.inf))


def union(parts: Sequence[Outcome]) -> Outcome:
    """The worst case of several attacks, per sample: robust only where it is robust to each of them.

    Of a sample that is not, the prediction and the change are those of the first attack that fooled the model, whatever
    its norm; of others, those of the first attack. No passes are spent.

    Args:
        parts: Outcomes of one model, at least one.

    Returns:
        The outcome on the samples that all of them have.

    Raises:
        ValueError: If they have no sample in common.
    """
    ids = parts[0].ids
    for part in parts[1:]:
        ids = np.intersect1d(ids, part.ids)
    if not len(ids):
        raise ValueError("the attacks were run on different images")
    rows = [np.argsort(part.ids)[np.searchsorted(np.sort(part.ids), np.sort(ids))] for part in parts]

    def stacked(name: str) -> NDArray[Any]:
        return np.stack([getattr(part, name)[at] for part, at in zip(parts, rows, strict=True)])

    wrong = stacked("clean") != stacked("labels")
    first = ((stacked("final") != stacked("labels")) | wrong).argmax(axis=0)
    rounded = ((stacked("rounded") != stacked("labels")) | wrong).argmax(axis=0)
    samples = np.arange(len(ids))
    arrays = {name: stacked(name)[first, samples] for name in _CHANGE}
    arrays["rounded"] = stacked("rounded")[rounded, samples]
    arrays["attempted"] = stacked("attempted").all(axis=0)
    return Outcome.of(parts[0].num_classes, "union", ids=np.sort(ids), labels=stacked("labels")[0], **arrays)
