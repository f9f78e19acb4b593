"""From a cell's outcome to its record."""

from __future__ import annotations

import math
from typing import Any

from robbench.core.registry import Registry
from robbench.evaluation.evaluator import Result
from robbench.evaluation.metrics.decisions import confusion
from robbench.planning.plan import Cell
from robbench.results.schema import Costs, Measure, Outcome, Record, Training, digest


def metrics_digest(registry: Registry) -> str:
    """Identifies the metrics that a record holds, plugins' included, so that new ones are noticed."""
    return digest([(name, entry.cls.version, entry.source) for name, entry in registry.entries("metric").items()])


def measure(outcome: Outcome, registry: Registry) -> dict[str, Measure]:
    """All registered metrics of an outcome.

    Raises:
        ValueError: If a figure is no finite number.
    """
    figures: dict[str, Measure] = {}
    for name, entry in registry.entries("metric").items():
        component: Any = entry.cls.make(entry.mark.preset, f'metric "{name}"')
        for figure, found in component.measure(outcome).items():
            value, low, high, count = found
            plain = [None if number is None else float(number) for number in (value, low, high)]
            if plain[0] is None or not all(number is None or math.isfinite(number) for number in plain):
                raise ValueError(f'metric "{name}": {figure} = {value} ({low} to {high}) is not a finite number')
            figures[str(figure)] = Measure(plain[0], plain[1], plain[2], int(count))
    return figures


def scored(record: Record, outcome: Outcome, registry: Registry) -> Record:
    """The record with its metrics and confusion matrix."""
    matrix = confusion(outcome.labels, outcome.final, outcome.num_classes)
    return record.model_copy(
        update={
            "metrics": measure(outcome, registry),
            "metrics_digest": metrics_digest(registry),
            "confusion": tuple(tuple(int(count) for count in row) for row in matrix),
        }
    )


def done(
    cell: Cell, result: Result, info: dict[str, Any], provenance: dict[str, Any], seconds: float, registry: Registry
) -> Record:
    """The record of a cell that was evaluated, before its row is audited.

    Args:
        cell: What was evaluated.
        result: What came of it.
        info: What is recorded of the model.
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
        training=Training.of(info),
        notes=(*info["notes"], *result.notes),
        provenance=provenance,
        timings={"seconds": seconds},
    )
    return scored(record, outcome, registry)


def without_result(cell: Cell, status: str, reason: str, provenance: dict[str, Any]) -> Record:
    """The record of a cell that failed or is not supported."""
    return Record.model_validate(
        {"key": cell.key, "status": status, "reason": reason, "spec": cell.spec, "provenance": provenance}
    )
