"""The figures of the built-in metrics, which follow from every outcome alike, whatever plugins there are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

from robbench.core.metric import Metric
from robbench.core.registry import Registry
from robbench.results.schema import Measure, Outcome


@functools.cache
def _metrics() -> Mapping[str, Metric]:
    entries = Registry(installed=False).entries("metric")
    return {
        name: cast(Metric, entry.cls.make(entry.mark.preset, f'metric "{name}"')) for name, entry in entries.items()
    }


def built_in_figures(outcome: Outcome) -> dict[str, Measure]:
    """All of them by name, as plain numbers."""
    found = {name: figure for metric in _metrics().values() for name, figure in metric.measure(outcome).items()}
    return {
        name: Measure(float(figure.value), _plain(figure.low), _plain(figure.high), int(figure.n))
        for name, figure in found.items()
    }


def built_in_versions() -> dict[str, int]:
    """The versions of the built-in metrics by name."""
    return {name: metric.version for name, metric in _metrics().items()}


def _plain(end: float | None) -> float | None:
    return None if end is None else float(end)
