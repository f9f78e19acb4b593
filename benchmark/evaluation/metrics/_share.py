"""A rate over some of the samples."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from robbench.evaluation.statistics import wilson
from robbench.results.schema import Bools, Measure


def share(values: NDArray[Any], mask: Bools) -> Measure:
    """The mean of the values in [0, 1] where a mask holds, with its Wilson interval."""
    return wilson(float(values[mask].sum()), int(mask.sum()))
