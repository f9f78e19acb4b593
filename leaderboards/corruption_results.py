"""What common corruptions cost, over the whole suite of kinds and severities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TypeVar

from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES
from robbench.core.errors import RequestError
from robbench.evaluation.corruption_error import mce, mean_corruption_accuracy, relative_mce
from robbench.leaderboards.aggregates import Rates, rates, scores
from robbench.leaderboards.table import Status, Table

Place = tuple[str, int]
K = TypeVar("K")


@dataclass(frozen=True)
class Corrupted:
    """A row under the suite.

    Attributes:
        rates: By kind and severity, of the conditions that are done.
        mean: Mean accuracy over the fifteen kinds and all severities; None where some are not done.
        mean_all: The same over all nineteen.
        mce: Mean corruption error relative to the baseline, 1 for the baseline itself.
        relative_mce: The same of errors beyond those on clean images.
        troubles: Status of the conditions that are not done, and why.
        conditions: The suite's conditions by kind and severity.
    """

    rates: Mapping[Place, Rates]
    mean: float | None
    mean_all: float | None
    mce: float | None
    relative_mce: float | None
    troubles: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    conditions: Mapping[Place, str] = field(default_factory=dict)

    def kind(self, name: str) -> float | None:
        """Mean accuracy over the severities of a kind; None where some are not done."""
        found = [self.rates[name, severity].share.value for severity in SEVERITIES if (name, severity) in self.rates]
        return fmean(found) if len(found) == len(SEVERITIES) else None


def corrupted(table: Table) -> dict[str, Corrupted]:
    """The rows under the suite, by label; none where the grid has no corruptions.

    The table's first row is the baseline.
    """
    places = {
        (str(stage.parameters["kind"]), int(stage.parameters["severity"])): spec.label
        for spec in table.corruptions
        for stage in spec.stages
    }
    if not places:
        return {}
    found = {model.label: _rates(table, model.label, places) for model in table.models}
    bare = {spec.label: spec.label for spec in table.conditions if spec.kind == "clean"}
    clean = {label: next(iter(_rates(table, label, bare).values()), None) for label in found}
    baseline = table.models[0].label
    made = {}
    for label in found:
        statuses = {spec.label: table.status(label, spec.label) for spec in table.corruptions}
        troubles = {name: status for name, status in statuses.items() if status[0] != "done"}
        figures = _figures(found[label], found[baseline], clean[label], clean[baseline])
        made[label] = replace(figures, troubles=troubles, conditions=places)
    return made


def _rates(table: Table, model: str, places: Mapping[K, str]) -> dict[K, Rates]:
    found = {}
    for place, condition in places.items():
        outcomes = table.outcomes(model, condition)
        rated = rates([scores(outcome) for outcome in outcomes], table.num_classes) if outcomes else None
        if rated:
            found[place] = rated[0]
    return found


def _figures(
    found: Mapping[Place, Rates], baseline: Mapping[Place, Rates], clean: Rates | None, baseline_clean: Rates | None
) -> Corrupted:
    own, other = ({place: rated.share.value for place, rated in part.items()} for part in (found, baseline))
    relative = None
    if clean and baseline_clean:
        relative = _defined(lambda: relative_mce(own, other, clean.share.value, baseline_clean.share.value))
    return Corrupted(
        found,
        mean=_defined(lambda: mean_corruption_accuracy(own)),
        mean_all=_defined(lambda: mean_corruption_accuracy(own, (*MAIN, *EXTRA))),
        mce=_defined(lambda: mce(own, other)),
        relative_mce=relative,
    )


def _defined(figure: Callable[[], float]) -> float | None:
    """A number, or None where it lacks a condition or its baseline makes no error."""
    try:
        return figure()
    except RequestError:
        return None
