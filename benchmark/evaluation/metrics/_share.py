"""A rate over some of the samples."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from robbench.evaluation.statistics import mean_rate
from robbench.results.schema import Bools, Measure


def share(values: NDArray[Any], mask: Bools) -> Measure:
    """The mean of the values in [0, 1] where a mask holds, with its interval."""
    return mean_rate(values[mask])
