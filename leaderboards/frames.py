"""Outcomes as a pandas table, for analyses that no board has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robbench.results.schema import CellResult

if TYPE_CHECKING:
    import pandas as pd


def samples(cells: Sequence[CellResult]) -> pd.DataFrame:
    """One line per cell and test sample.

    Args:
        cells: Records with their outcomes, as ``robbench.leaderboards.archive.read_archive`` gives them for a published
            board; those without an outcome are left out.

    Returns:
        A table with the columns dataset, model, condition, seed, every one-dimensional array of ``Outcome`` (``ids``,
        ``labels``, ``clean``, ``final``, ``linf``, …) and ``robust``.
    """
    import pandas as pd

    parts = []
    for record, outcome in cells:
        if outcome is None:
            continue
        spec = record.spec
        head = {"dataset": spec.dataset.label, "model": spec.model.label, "condition": spec.condition.label}
        arrays = {name: getattr(outcome, name) for name, spec in outcome.arrays().items() if spec.columns == "one"}
        parts.append(pd.DataFrame({**head, "seed": spec.seed, **arrays, "robust": outcome.robust}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
