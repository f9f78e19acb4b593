"""The figures of one cell, by name, from its outcome alone. Needs no torch, so that boards can use it.

Every rate carries a 95 % Wilson interval; means over classes carry the one of
``robbench.evaluation.statistics.balanced``. A figure that would rest on no sample is left out. ``name/3`` is the figure
of class 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.evaluation.statistics import balanced, class_rates, wilson, worst_class
from robbench.results.schema import Floats, Ints, Measure, Outcome

DRAWS = (1, 10, 100)
NORM_NAMES = ("linf", "l2", "l1", "l0")


def confusion(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Counts by true class (rows) and decision (columns), shape ``(K, K)``."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def classification(labels: Ints, predictions: Ints, num_classes: int) -> dict[str, Measure]:
    """What a classification report holds.

    ``accuracy``, ``balanced_accuracy``, ``worst_class_accuracy``; ``precision``, ``recall`` and ``f1``, per class and
    as ``macro_`` and ``weighted_`` averages over the classes that have samples; ``support`` per class. The precision of
    a class that is never decided on is 0 by convention, without an interval; F1 has no interval.
    """
    table = confusion(labels, predictions, num_classes)
    hits, support, decided = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    n = int(support.sum())
    if n == 0:
        return {}
    recall = [wilson(int(hit), int(count)) for hit, count in zip(hits, support, strict=True)]
    precision = [
        wilson(int(hit), int(count)) if count else Measure(0.0) for hit, count in zip(hits, decided, strict=True)
    ]
    f1 = [
        Measure(2 * int(hit) / max(1, int(true + chosen)), n=int(true))
        for hit, true, chosen in zip(hits, support, decided, strict=True)
    ]
    figures = {
        "accuracy": wilson(int(hits.sum()), n),
        "balanced_accuracy": balanced(recall),
        "worst_class_accuracy": worst_class(recall),
    }
    weights = support / n
    for name, rates in (("precision", precision), ("recall", recall), ("f1", f1)):
        values = np.array([rate.value for rate in rates])
        figures[f"macro_{name}"] = Measure(float(values[support > 0].mean()), n=n)
        figures[f"weighted_{name}"] = Measure(float(weights @ values), n=n)
        figures |= {f"{name}/{label}": rates[label] for label in np.flatnonzero(support)}
    figures |= {f"support/{label}": Measure(float(count), n=n) for label, count in enumerate(support)}
    return figures


def decisions(outcome: Outcome) -> dict[str, Measure]:
    """The classification report after the condition, and what the same samples give unchanged.

    For an attack ``accuracy`` is the robust accuracy, since samples wrong on the unchanged image keep that decision;
    for a chain it is the plain accuracy after it. With one target for all, both are over the samples of that class too,
    with their decisions unchanged. ``clean_accuracy`` and ``balanced_clean_accuracy`` are of the unchanged images.
    """
    figures = classification(outcome.labels, outcome.final, outcome.num_classes)
    if outcome.kind != "clean" and len(outcome):
        right = outcome.clean == outcome.labels
        figures["clean_accuracy"] = wilson(int(right.sum()), len(outcome))
        figures["balanced_clean_accuracy"] = balanced(class_rates(right, outcome.labels, outcome.num_classes))
    return figures


def judged(outcome: Outcome) -> NDArray[np.bool_]:
    """Which samples tell of robustness; bool, shape ``(N,)``.

    With one target for all, a sample of that class is right already where it should be brought to: the condition is
    not tried on it, which proves nothing. So of attacks and chains, samples that were right unchanged count only where
    they were attempted.
    """
    if outcome.kind not in ("attack", "chain"):
        return np.ones(len(outcome), dtype=np.bool_)
    kept: NDArray[np.bool_] = outcome.attempted | (outcome.clean != outcome.labels)
    return kept


def robustness(outcome: Outcome) -> dict[str, Measure]:
    """Share of judged samples right on the unchanged image and right after an attack or a chain.

    ``robust_accuracy`` over all and per class, ``balanced_robust_accuracy``, ``worst_class_robust_accuracy``, and
    ``robust_accuracy_8bit`` where attacked images are rounded to 8 bits before they are judged.
    """
    kept = judged(outcome)
    if outcome.kind not in ("attack", "chain") or not kept.any():
        return {}
    rates = class_rates(outcome.robust[kept], outcome.labels[kept], outcome.num_classes)
    rounded = (outcome.clean == outcome.labels) & (outcome.rounded == outcome.labels)
    figures = {
        "robust_accuracy": _share(outcome.robust, kept),
        "balanced_robust_accuracy": balanced(rates),
        "worst_class_robust_accuracy": worst_class(rates),
        "robust_accuracy_8bit": _share(rounded, kept),
    }
    return figures | {f"robust_accuracy/{label}": rate for label, rate in enumerate(rates) if rate.n}


def repeated_draws(outcome: Outcome) -> dict[str, Measure]:
    """How natural perturbations, or chains that begin with them, vary from draw to draw.

    ``draws_mean``, the mean accuracy over all draws; ``draws_std``, ``draws_min`` and ``draws_max``, their spread, of
    two draws or more; ``worst_of_N``, the share of samples right after every one of the first N draws, for N of 1, 10
    and 100 as far as there are so many.
    """
    count = outcome.draws.shape[1]
    if count == 0 or len(outcome) == 0:
        return {}
    right = outcome.draws == outcome.labels[:, None]
    by_draw = right.mean(axis=0)
    figures = {"draws_mean": wilson(float(right.mean(axis=1).sum()), len(outcome))}
    if count > 1:
        figures["draws_std"] = Measure(float(by_draw.std(ddof=1)), n=count)
        figures["draws_min"] = Measure(float(by_draw.min()), n=count)
        figures["draws_max"] = Measure(float(by_draw.max()), n=count)
    for first in DRAWS:
        if first <= count:
            figures[f"worst_of_{first}"] = wilson(int(right[:, :first].all(axis=1).sum()), len(outcome))
    return figures


def succeeded(outcome: Outcome) -> NDArray[np.bool_]:
    """Where the condition reached its target, or a wrong decision where it has none; bool, shape ``(N,)``."""
    reached = np.where(outcome.targets >= 0, outcome.final == outcome.targets, outcome.final != outcome.labels)
    success: NDArray[np.bool_] = np.logical_and(outcome.attempted, reached)
    return success


def distances(outcome: Outcome, norm: str, eps: float | None = None) -> Floats:
    """The size of the change that brought each sample where the condition wants it; float64, shape ``(N,)``.

    0 where the sample was wrong unchanged, infinite where the condition did not succeed.

    Args:
        outcome: Of an attack.
        norm: In which to measure.
        eps: Largest norm allowed, or None; what lies above it within the referee's tolerance counts as eps.
    """
    sizes = np.minimum(getattr(outcome, norm), np.inf if eps is None else eps)
    return np.where(outcome.clean != outcome.labels, 0.0, np.where(succeeded(outcome), sizes, np.inf))


def success(outcome: Outcome) -> dict[str, Measure]:
    """How often attacks and chains succeed on the samples that they are tried on and that were right unchanged.

    ``success_rate``: the decision became wrong. ``targeted_success``: it became the target, of samples not in that
    class.
    Where all targets are tried in turn, ``targeted_success`` is that some target was reached (the worst case), and
    ``targeted_success_mean`` is over pairs of sample and target, with its interval as if a sample counted once.
    """
    if outcome.kind not in ("attack", "chain"):
        return {}
    tried = outcome.attempted & (outcome.clean == outcome.labels)
    figures = {"success_rate": _share(outcome.final != outcome.labels, tried)}
    if outcome.every_target.shape[1]:
        known = (outcome.every_target >= 0) & tried[:, None]
        reached = known & (outcome.every_target == np.arange(outcome.every_target.shape[1]))
        some = known.any(axis=1)
        figures["targeted_success"] = _share(reached.any(axis=1), some)
        figures["targeted_success_mean"] = _share(reached.sum(axis=1) / np.maximum(1, known.sum(axis=1)), some)
    elif (outcome.targets >= 0).any():
        aimed = tried & (outcome.targets >= 0) & (outcome.targets != outcome.labels)
        figures["targeted_success"] = _share(outcome.final == outcome.targets, aimed)
    return {name: figure for name, figure in figures.items() if figure.n}


def agreement(outcome: Outcome) -> dict[str, Measure]:
    """``surrogate_agreement``: how often the differentiable scores and the hard decision agree on what was changed.

    On attacked images for attacks and chains, on unchanged ones for the clean condition. It is lower than it seems at
    points where an attack stopped at the first change of the decision.
    """
    if outcome.kind == "natural":
        return {}
    looked = np.ones(len(outcome), dtype=np.bool_) if outcome.kind == "clean" else outcome.attempted
    figure = _share(outcome.scored == outcome.final, looked)
    return {"surrogate_agreement": figure} if figure.n else {}


def _share(values: NDArray[Any], mask: NDArray[np.bool_]) -> Measure:
    return wilson(float(values[mask].sum()), int(mask.sum()))


def change(outcome: Outcome) -> dict[str, Measure]:
    """Norms of the whole change: ``linf_mean``, ``linf_median``, ``linf_max`` over the samples that were changed.

    The same with ``_success`` behind, as in ``l2_median_success``, over those where the condition succeeded: what
    counts for attacks that look for the smallest change.
    """
    if outcome.kind == "clean":
        return {}
    masks = {"": outcome.attempted}
    if outcome.kind != "natural":
        masks["_success"] = succeeded(outcome)
    figures = {}
    for norm in NORM_NAMES:
        for suffix, mask in masks.items():
            sizes = getattr(outcome, norm)[mask]
            if len(sizes):
                for name, reduce in (("mean", np.mean), ("median", np.median), ("max", np.max)):
                    figures[f"{norm}_{name}{suffix}"] = Measure(float(reduce(sizes)), n=len(sizes))
    return figures


def passes(outcome: Outcome) -> dict[str, Measure]:
    """Mean ``forwards`` and ``backwards`` per sample, over all samples, attacked or not."""
    if len(outcome) == 0:
        return {}
    spent: Mapping[str, NDArray[np.float64]] = {"forwards": outcome.forwards, "backwards": outcome.backwards}
    return {name: Measure(float(values.mean()), n=len(outcome)) for name, values in spent.items()}


PARTS = (decisions, robustness, repeated_draws, success, agreement, change, passes)
"""What the built-in metrics are made of."""


def figures(outcome: Outcome) -> dict[str, Measure]:
    """All of them by name, as plain numbers."""
    found = {name: figure for part in PARTS for name, figure in part(outcome).items()}
    return {
        name: Measure(float(figure.value), _plain(figure.low), _plain(figure.high), int(figure.n))
        for name, figure in found.items()
    }


def _plain(end: float | None) -> float | None:
    return None if end is None else float(end)
