"""Figures over a whole suite of corruptions. Needs no torch, so that boards can use it.

All are functions of accuracies by kind of corruption and severity (Hendrycks and Dietterich, "Benchmarking neural
network robustness to common corruptions and perturbations", 2019, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

from robbench.core.corruption_kinds import MAIN, SEVERITIES, CorruptionKind
from robbench.core.errors import RequestError

Accuracies: TypeAlias = Mapping[tuple[str, int], float]
"""Shares of right predictions, in [0, 1], by kind and severity."""


def mean_corruption_accuracy(accuracies: Accuracies, kinds: Sequence[CorruptionKind] = MAIN) -> float:
    """Mean accuracy over kinds and severities; over all 19 kinds with ``kinds = MAIN + EXTRA``.

    Args:
        accuracies: Of a model; entries of other kinds are not looked at.
        kinds: What the mean is over.

    Raises:
        RequestError: If an accuracy is missing or outside [0, 1].
    """
    return 1 - fmean([fmean(row) for row in _errors(accuracies, kinds, "the model")])


def mce(accuracies: Accuracies, baseline: Accuracies, kinds: Sequence[CorruptionKind] = MAIN) -> float:
    """Mean corruption error: the model's errors as a share of a baseline's, kind by kind, then the mean.

    Args:
        accuracies: Of a model.
        baseline: Of the model it is compared with.
        kinds: What the mean is over.

    Returns:
        1 for a model that is as good as the baseline, below 1 for a better one (the paper writes it in percent).

    Raises:
        RequestError: If an accuracy is missing or outside [0, 1], or the baseline makes no errors on some kind.
    """
    return relative_mce(accuracies, baseline, clean=1.0, baseline_clean=1.0, kinds=kinds)


def relative_mce(
    accuracies: Accuracies,
    baseline: Accuracies,
    clean: float,
    baseline_clean: float,
    kinds: Sequence[CorruptionKind] = MAIN,
) -> float:
    """Relative mean corruption error: as ``mce``, of the errors beyond those on clean images.

    Args:
        accuracies: Of a model.
        baseline: Of the model it is compared with.
        clean: The model's accuracy on clean images.
        baseline_clean: The baseline's.
        kinds: What the mean is over.

    Raises:
        RequestError: If an accuracy is missing or outside [0, 1], or some kind costs the baseline nothing.
    """
    for name, value in (("the model's", clean), ("the baseline's", baseline_clean)):
        if not 0 <= value <= 1:
            raise RequestError(f"{name} accuracy on clean images is {value}, which is no share")
    losses = [math.fsum(row) - len(row) * (1 - clean) for row in _errors(accuracies, kinds, "the model")]
    scales = [math.fsum(row) - len(row) * (1 - baseline_clean) for row in _errors(baseline, kinds, "the baseline")]
    for kind, scale in zip(kinds, scales, strict=True):
        # Sums of a few accuracies carry rounding errors far below one sample of any test set.
        if scale <= 1e-9:
            raise RequestError(f"the baseline loses nothing to {kind}, so that nothing can be compared with it")
    return fmean([loss / scale for loss, scale in zip(losses, scales, strict=True)])


def _errors(accuracies: Accuracies, kinds: Sequence[CorruptionKind], whose: str) -> list[list[float]]:
    """Error rates, one list of severities per kind."""
    if not kinds:
        raise RequestError("a mean over no kind of corruption means nothing")
    wanted = [(kind, severity) for kind in kinds for severity in SEVERITIES]
    missing = [f"{kind} at severity {severity}" for kind, severity in wanted if (kind, severity) not in accuracies]
    if missing:
        some = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise RequestError(f"{whose} was not put to {len(missing)} of {len(wanted)} corruptions: {some}")
    for kind, severity in wanted:
        if not 0 <= accuracies[kind, severity] <= 1:
            raise RequestError(f"{whose}: accuracy {accuracies[kind, severity]} on {kind}, {severity} is no share")
    return [[1 - accuracies[kind, severity] for severity in SEVERITIES] for kind in kinds]
