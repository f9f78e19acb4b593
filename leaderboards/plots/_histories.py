"""Histories of training, drawn epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.leaderboards.artifact_reader import History
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histories(scene: Scene, row: Row) -> list[History]:
    """Those of a row, by seed."""
    known = scene.materials.histories
    return [known[row.label, seed] for seed in row.seeds if (row.label, seed) in known]


def loss_axis(axes: Axes, losses: Sequence[NDArray[np.float64]]) -> None:
    """Logarithmic where losses span more than a factor of 30, else from 0 on."""
    values = np.concatenate(losses) if losses else np.zeros(0)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    elif len(values) and values.min() >= 0:
        axes.set_ylim(0, 1.08 * values.max() or 1.0)


def whole_epochs(axes: Axes, found: Sequence[History]) -> None:
    """Let the axis of epochs have whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    last = max(int(history.epochs[-1]) for history in found)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last) if last > 1 else axes.set_xlim(0.5, 1.5)
