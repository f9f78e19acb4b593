"""Measuring outcomes anew, where metrics were added or changed; those of plugins in a process of their own."""

from __future__ import annotations

from robbench.core.registry import Registry
from robbench.evaluation.scoring import metrics_digest, scored
from robbench.execution.plugin_process import Lost, PluginFailure, measure_outcomes, with_foreign_metrics
from robbench.execution.processes import Child
from robbench.results.schema import Outcome, Record


def rescored(record: Record, outcome: Outcome, registry: Registry, timeout: float) -> Record:
    """The record with its metrics measured anew.

    Args:
        record: The record.
        outcome: What it rests on.
        registry: The metrics.
        timeout: Seconds that the metrics of plugins may take.

    Raises:
        PluginFailure: If a metric of a plugin fails.
    """
    fresh = scored(record, outcome, Registry(installed=False))
    if all(entry.source is None for entry in registry.entries("metric").values()):
        return fresh
    child = Child.start(measure_outcomes, registry, device="cpu", apart=True)
    try:
        return with_foreign_metrics(fresh, outcome, metrics_digest(registry), child.connection, timeout)
    except Lost:
        child.process.join(1)
        late = f"time limit: not done after {timeout:g} seconds"
        raise PluginFailure(late if child.process.is_alive() else child.death()) from None
    finally:
        child.end()
