"""From a cell's outcome to its record."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from robbench.core.errors import Breach, explain
from robbench.core.global_rng import seeded
from robbench.core.metric import Metric
from robbench.core.process_state import settings_kept
from robbench.core.registry import Registry
from robbench.evaluation.evaluator import Result
from robbench.evaluation.metrics._built_in import BUILT_IN_FIGURES, built_in_figures
from robbench.evaluation.metrics.decisions import confusion
from robbench.evaluation.model_size import ModelSize
from robbench.planning.plan import Cell
from robbench.results.schema import MANY_CLASSES, Costs, Measure, Outcome, Record, Training, digest

FORM, NAMES = "figures are numbers in their intervals", "figures have names of their own"
MOST_FIGURES = 100
"""Figures that a plugin's metric may give, those of single classes not counted."""
_FIGURE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}(/(0|[1-9][0-9]{0,5}))?")


def metrics_digest(registry: Registry) -> str:
    """Identifies the metrics that a record holds, plugins' included, so that new ones are noticed."""
    return digest([(name, entry.cls.version, entry.source) for name, entry in registry.entries("metric").items()])


def measure(outcome: Outcome, registry: Registry) -> dict[str, Measure]:
    """All registered metrics of an outcome.

    Raises:
        Breach: If a plugin's metric gives something else than figures with names of their own, or leaves a trace.
    """
    return with_figures(built_in_figures(outcome), foreign_figures(outcome, registry), outcome)


def foreign_figures(outcome: Outcome, registry: Registry) -> dict[str, dict[str, Measure]]:
    """The figures of plugins' metrics, by metric.

    Raises:
        Breach: If one gives something else than figures, or leaves a trace.
    """
    found = {}
    for name, entry in registry.entries("metric").items():
        if entry.source is not None:
            component: Any = entry.cls.make(entry.mark.preset, f'metric "{name}"')
            with settings_kept(), seeded(0):
                found[name] = figures_of(component, outcome, name)
    return found


def with_figures(
    known: Mapping[str, Measure], found: Mapping[str, Mapping[Any, Any]], outcome: Outcome
) -> dict[str, Measure]:
    """Figures, and those of plugins' metrics, which cannot replace them.

    Args:
        known: Figures by name.
        found: What each metric gave; nothing in it is taken on trust.
        outcome: What was measured.

    Raises:
        Breach: If something in it is no figure with a name of its own.
    """
    figures = dict(known)
    for metric, given in found.items():
        checked = check_figures(given, outcome, metric)
        refuse_taken(checked, figures, metric)
        figures |= checked
    return figures


def figures_of(metric: Metric, outcome: Outcome, name: str) -> dict[str, Measure]:
    """The figures of a metric, as plain numbers.

    Args:
        metric: The metric.
        outcome: What it is to measure; it gets a copy.
        name: What it is called in messages.

    Raises:
        Breach: If it raises an error, gives no numbers inside their intervals or names that cannot be shown, or writes
            to the outcome.
    """
    before = outcome.sha256()
    try:
        found: object = metric.measure(replace(outcome))
    except Exception as error:
        raise Breach("metrics can measure every outcome", f'metric "{name}": {explain(error)}') from error
    if outcome.sha256() != before:
        raise Breach("outcomes stay as they are", f'metric "{name}" wrote to the arrays that it was given')
    return check_figures(found, outcome, name)


def check_figures(found: object, outcome: Outcome, name: str) -> dict[str, Measure]:
    """See that a metric gave figures; see ``figures_of``."""
    if not isinstance(found, Mapping):
        raise Breach(FORM, f'metric "{name}": got {type(found).__name__}, not names with a Measure each')
    figures = {_name(figure, outcome, name): _measure(value, figure, name) for figure, value in found.items()}
    if len({figure.partition("/")[0] for figure in figures}) > MOST_FIGURES:
        raise Breach(
            NAMES, f'metric "{name}": {len(figures)} figures are more than the {MOST_FIGURES} that it may give'
        )
    return figures


def refuse_taken(figures: Mapping[str, Measure], known: Mapping[str, Measure], name: str) -> None:
    """See that no figure of a plugin's metric has a name that is taken.

    Args:
        figures: Its figures by name.
        known: Those of the metrics before it.
        name: What the metric is called in messages.

    Raises:
        Breach: At the first whose name a built-in metric may use, whatever the condition, or one before it does.
    """
    for figure in figures:
        if figure.partition("/")[0] in BUILT_IN_FIGURES:
            raise Breach(NAMES, f'metric "{name}": "{figure}" is a figure of robbench itself; call it otherwise')
        if figure in known:
            raise Breach(NAMES, f'metric "{name}": another metric gives "{figure}" as well')


def _name(figure: object, outcome: Outcome, metric: str) -> str:
    if not isinstance(figure, str) or not _FIGURE.fullmatch(figure):
        shown = repr(figure)[:60]
        raise Breach(NAMES, f'metric "{metric}": {shown} is no name of up to 60 letters, digits, "_", "-" and "."')
    label = figure.partition("/")[2]
    if label and int(label) >= outcome.num_classes:
        raise Breach(NAMES, f'metric "{metric}": "{figure}" is of a class that is not there; "/" is for classes')
    return figure


def _measure(found: object, figure: object, metric: str) -> Measure:
    place = f'metric "{metric}": "{figure}"'
    if not isinstance(found, tuple) or len(found) != len(Measure._fields):
        raise Breach(FORM, f"{place} is a {type(found).__name__}, not a Measure")
    value, low, high, count = found
    ends = [] if low is None and high is None else [low, high]
    if not all(_finite(number) for number in (value, *ends)):
        raise Breach(FORM, f"{place} = {value!r} ({low!r} to {high!r}) is not a finite number")
    if ends and not low - 1e-9 <= value <= high + 1e-9:
        raise Breach(FORM, f"{place} = {value} lies outside its interval, {low} to {high}")
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
        raise Breach(FORM, f"{place} rests on {count!r} samples, which is no number of them")
    low, high = (float(low), float(high)) if ends else (None, None)
    return Measure(float(value), low, high, int(count))


def _finite(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def scored(record: Record, outcome: Outcome, registry: Registry) -> Record:
    """The record with its metrics and confusion matrix; without that of many classes unless it has one."""
    return record.model_copy(
        update={
            "metrics": measure(outcome, registry),
            "metrics_digest": metrics_digest(registry),
            "confusion": counted(outcome) if outcome.num_classes <= MANY_CLASSES or record.confusion else (),
        }
    )


def counted(outcome: Outcome) -> tuple[tuple[int, ...], ...]:
    """Counts of an outcome by true class (rows) and prediction (columns), as plain numbers."""
    matrix = confusion(outcome.labels, outcome.final, outcome.num_classes)
    return tuple(tuple(int(count) for count in row) for row in matrix)


def done(
    cell: Cell,
    result: Result,
    training: Training | None,
    size: ModelSize,
    notes: tuple[str, ...],
    provenance: dict[str, Any],
    seconds: float,
    registry: Registry,
) -> Record:
    """The record of a cell that was evaluated, before its row is audited.

    Args:
        cell: What was evaluated.
        result: What came of it.
        training: What went into the model; None where others trained it.
        size: How large the model is.
        notes: What is to be said of the model.
        provenance: What it was done with.
        seconds: How long it took.
        registry: The known metrics.
    """
    outcome = result.outcome
    record = Record(
        key=cell.key,
        status="done",
        spec=cell.spec,
        costs=Costs(forwards=float(outcome.forwards.sum()), backwards=float(outcome.backwards.sum())),
        traits=result.traits,
        training=training,
        parameters=size.parameters,
        multiply_adds=size.multiply_adds,
        notes=(*notes, *result.notes),
        provenance=provenance,
        timings={"seconds": seconds},
    )
    return scored(record, outcome, registry)


def without_result(cell: Cell, status: str, reason: str, provenance: dict[str, Any]) -> Record:
    """The record of a cell that failed or is not supported."""
    return Record.model_validate(
        {"key": cell.key, "status": status, "reason": reason, "spec": cell.spec, "provenance": provenance}
    )
