"""The audit: what makes a row untrustworthy, with the reason in plain words."""

from __future__ import annotations

import numpy as np

from robbench.records import Outcome

BLOCKING = {
    "survives-everything": (
        "decides for the same class on every test image: keeping that decision under attack is no robustness"
    ),
}
"""Flags that put a row below every row without one, and what they mean."""


def flags(outcome: Outcome) -> tuple[str, ...]:
    """The blocking flags that a single cell's outcome gives rise to.

    A classifier that decides for one class on all unchanged images, though they show several, is constant.
    """
    several = len(np.unique(outcome.labels)) > 1
    return ("survives-everything",) if several and len(np.unique(outcome.clean)) == 1 else ()
