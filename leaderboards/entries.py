"""One condition of one row: its numbers over the seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.core.threat_model import LP_NORMS
from robbench.evaluation.macro_f1 import macro_f1
from robbench.evaluation.metrics._built_in import built_in_figures
from robbench.evaluation.metrics.decisions import confusion
from robbench.evaluation.metrics.draws import DRAWS
from robbench.evaluation.verdicts import judged
from robbench.leaderboards.aggregates import Estimate, Rates, accuracy_scores, on, rates, scores
from robbench.leaderboards.table import Status, Table
from robbench.results.schema import MANY_CLASSES, ConditionSpec, Ints, Measure, Outcome

_DETAILS: tuple[str, ...] = (
    "robust_accuracy_8bit",
    "success_rate",
    "targeted_success",
    "targeted_success_mean",
    "surrogate_agreement",
    "draws_mean",
    "draws_std",
    "draws_min",
    "draws_max",
    *(f"worst_of_{n}" for n in DRAWS),
    *(f"{norm}_median{suffix}" for norm in LP_NORMS for suffix in ("", "_success")),
    "forwards",
    "backwards",
)


CONFUSED = 20
"""Of many classes, so many pairs that are confused are kept."""


@dataclass(frozen=True)
class Entry:
    """One condition of one row.

    Attributes:
        status: ``done``, or what is wrong with at least one seed.
        reason: Why it is not done.
        rates: Accuracy after a natural perturbation; robust accuracy under an attack or chain.
        accuracy: For chains, accuracy after it, whatever the prediction on the clean image.
        confusion: Counts by true and predicted class, all seeds together, by the rule of ``rates``; nothing of many
            classes.
        confused: Of many classes in its place the pairs that are most often confused: true and predicted class, how
            many images, and of how many of the true class; None of few.
        details: Other built-in numbers by name.
        further: Numbers of all other registered metrics by name, as they were recorded.
        keys: The records' keys by seed.
    """

    status: Status
    reason: str = ""
    rates: Rates | None = None
    accuracy: Rates | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    confused: tuple[tuple[int, int, int, int], ...] | None = None
    details: Mapping[str, Estimate] | None = None
    further: Mapping[str, Estimate] | None = None
    keys: Mapping[str, str] | None = None

    def detail(self, name: str) -> Estimate | None:
        """A built-in number by name, None where it has none."""
        return (self.details or {}).get(name)


def entry(table: Table, model: str, condition: ConditionSpec, images: Ints) -> Entry:
    """The numbers of a row under a condition.

    Args:
        table: The cells.
        model: The row's label.
        condition: The condition.
        images: Ids of those that all rows have, which accuracy is of.
    """
    status, reason = table.status(model, condition.label)
    keys = {str(record.spec.seed): record.key for record in table.records(model, condition.label)}
    outcomes = table.outcomes(model, condition.label)
    if outcomes is None or not any(len(outcome) for outcome in outcomes):
        return Entry(status, reason, keys=keys)
    by_seed = [built_in_figures(outcome) for outcome in outcomes]
    kept = [_kept(outcome, images) for outcome in outcomes]
    many = table.num_classes > MANY_CLASSES
    few = () if many else kept
    counts = sum(confusion(part.labels, part.final, table.num_classes) for part in few)
    right = rates([on(scores(outcome), images) for outcome in outcomes], table.num_classes)
    plain = rates([on(accuracy_scores(outcome), images) for outcome in outcomes], table.num_classes)
    return Entry(
        status=status,
        rates=right[0] if right else None,
        accuracy=plain[0] if plain and condition.kind == "chain" else None,
        confusion=tuple(tuple(int(count) for count in line) for line in np.asarray(counts)) if few else (),
        confused=_confused(kept, table.num_classes) if many else None,
        details=_details(by_seed) | _macro_f1(kept),
        further=_further([record.metrics for record in table.records(model, condition.label)], by_seed),
        keys=keys,
    )


@dataclass(frozen=True)
class _Predictions:
    """What a confusion matrix counts: images by rising id, with true and predicted classes, shape ``(N,)`` each."""

    ids: Ints
    labels: Ints
    final: Ints


def _kept(outcome: Outcome, images: Ints) -> _Predictions:
    """The images and the rule of ``rates``: under a chain too, a misclassified clean image keeps that prediction."""
    kept = np.flatnonzero(judged(outcome) & np.isin(outcome.ids, images))
    kept = kept[np.argsort(outcome.ids[kept])]
    final = outcome.final
    if outcome.kind == "chain":
        final = np.where(outcome.clean == outcome.labels, final, outcome.clean)
    return _Predictions(outcome.ids[kept], outcome.labels[kept], final[kept])


def _confused(by_seed: Sequence[_Predictions], num_classes: int) -> tuple[tuple[int, int, int, int], ...]:
    """The pairs of classes that are most often confused; of as many, in the order of the classes."""
    labels, final = (np.concatenate([getattr(part, name) for part in by_seed]) for name in ("labels", "final"))
    wrong = labels != final
    pairs, counts = np.unique(labels[wrong] * num_classes + final[wrong], return_counts=True)
    support = np.bincount(labels, minlength=num_classes)
    most = np.argsort(-counts, kind="stable")[:CONFUSED]
    found = ((*divmod(int(pairs[at]), num_classes), int(counts[at])) for at in most)
    return tuple((true, predicted, count, int(support[true])) for true, predicted, count in found)


def _macro_f1(by_seed: Sequence[_Predictions]) -> dict[str, Estimate]:
    shared = functools.reduce(np.intersect1d, [part.ids for part in by_seed])
    if not len(shared):
        return {}
    places = [np.searchsorted(part.ids, shared) for part in by_seed]
    labels = by_seed[0].labels[places[0]]
    predicted = [part.final[place] for part, place in zip(by_seed, places, strict=True)]
    alone = [macro_f1(labels, one[None]).value for one in predicted]
    return {"macro_f1": Estimate.of(macro_f1(labels, np.stack(predicted)), alone)}


def _details(by_seed: Sequence[Mapping[str, Measure]]) -> dict[str, Estimate]:
    found = {}
    for name in _DETAILS:
        parts = [figures[name] for figures in by_seed if name in figures]
        if len(parts) == len(by_seed):
            found[name] = Estimate.mean(parts, is_rate=all(part.low is not None for part in parts))
    return found


def _further(
    recorded: Sequence[Mapping[str, Measure]], known: Sequence[Mapping[str, Measure]]
) -> dict[str, Estimate] | None:
    """What every seed's record has beyond the built-in numbers; means over several seeds carry no interval."""
    found = {}
    for name in recorded[0]:
        parts = [figures[name] for figures in recorded if name in figures]
        if len(parts) == len(recorded) and not any(name in figures for figures in known):
            found[name] = Estimate.of(parts[0], [parts[0].value]) if len(parts) == 1 else Estimate.mean(parts)
    return found or None
