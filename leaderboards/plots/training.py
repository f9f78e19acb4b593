"""How training went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robbench.leaderboards.artifact_reader import History
from robbench.leaderboards.board import IMBALANCE, Row
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots.scene import Scene, Sketch, featured, which
from robbench.leaderboards.plots.style import BLUE, VERMILLION, share_axis, sheet
from robbench.leaderboards.plots.words import pct, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3


def training(scene: Scene) -> Iterator[Sketch]:
    """Loss and accuracy on training and validation images, a column for each of some rows."""
    found = {row.label: histories(scene, row) for row in scene.board.rows}
    rows = [row for row in scene.board.rows if found[row.label]]
    shown = featured(rows)
    if not shown:
        return
    columns = min(COLUMNS, len(shown))
    bands = -(-len(shown) // columns)
    made, panels = sheet(0.5 + 3.4 * bands, 2 * bands, columns)
    for axes in panels.flat:
        axes.set_visible(False)
    for position, row in enumerate(shown):
        band, column = divmod(position, columns)
        losses, accuracies = panels[2 * band, column], panels[2 * band + 1, column]
        accuracies.sharey(panels[1, 0])
        for axes, kind, factor in ((losses, "loss", 1.0), (accuracies, "accuracy", 100.0)):
            axes.set_visible(True)
            for history in found[row.label]:
                for part, color, line in (("train", BLUE, "-"), ("validation", VERMILLION, "--")):
                    values = factor * getattr(history, f"{part}_{kind}")
                    mark = "o" if len(values) < 4 else None
                    axes.plot(history.epochs, values, color=color, ls=line, marker=mark, lw=1.3, ms=3.5)
            whole_epochs(axes, found[row.label])
            axes.grid(axis="y")
        losses.set_title(scene.fonts.lines(row.label, 27), fontsize=8.5)
        parts = [[history.train_loss, history.validation_loss] for history in found[row.label]]
        loss_axis(losses, [values for pair in parts for values in pair])
        accuracies.set_xlabel("Epoch")
        if column == 0:
            losses.set_ylabel("Loss")
            accuracies.set_ylabel("Accuracy")
        accuracies.tick_params(labelleft=column == 0)
    accurate = [part.train_accuracy for row in shown for part in found[row.label]]
    accurate += [part.validation_accuracy for row in shown for part in found[row.label]]
    lowest = float(np.nanmin(np.concatenate(accurate), initial=1.0))
    share_axis(panels[1, 0], lowest=min(50, int(100 * lowest)))
    lines = panels[0, 0].get_lines()[:2]
    made.legend(lines, ["training images", "validation images"], loc="outside upper center", ncols=2)
    told = " ".join(_told(row, found[row.label]) for row in shown)
    several = any(len(part) > 1 for part in found.values())
    caption = (
        "Loss and accuracy after each epoch, on training images (solid) and validation images (dashed)"
        f"{', a line per seed' if several else ''}. Losses of different objectives are not on one scale, and where one "
        f"spans more than a factor of 30 its axis is logarithmic.{_proportions(scene)} {told}"
    )
    yield Sketch(
        Picture("training-curves", "training", "Training, epoch by epoch", caption + which(rows, shown), told), made
    )


def _proportions(scene: Scene) -> str:
    """That two accuracies are not of the same proportions of classes, a space before it, where they are not."""
    train, validation = (scene.board.dataset.counts.get(part, ()) for part in ("train", "validation"))
    if not train or not validation or max(train) * min(validation) <= IMBALANCE * min(train) * max(validation):
        return ""
    return (
        " Training images are in their own proportions, or those that a countermeasure gives them, and validation "
        "images in others, so their accuracies are not of one kind."
    )


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


def _told(row: Row, found: Sequence[History]) -> str:
    train = np.mean([history.train_accuracy[-1] for history in found])
    validation = np.mean([history.validation_accuracy[-1] for history in found])
    last = max(int(history.epochs[-1]) for history in found)
    return (
        f"{short(row.label)} ends after {counted(last, 'epoch')} with {pct(float(train))} on training and "
        f"{pct(float(validation))} on validation images."
    )
