"""How training went, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.artifact_reader import History
from robbench.leaderboards.board import IMBALANCE, Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._histories import histories, loss_axis, whole_epochs
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLUE, VERMILLION, share_axis, sheet
from robbench.leaderboards.plots._words import pct, short

COLUMNS = 3


@register_figure("training-curves")
@dataclass(frozen=True)
class TrainingCurves(Figure):
    """Loss and accuracy over epochs, on training and validation images."""

    section = "training"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
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
            f"{told} Loss and accuracy per epoch on training images (solid) and validation images (dashed)"
            f"{', a line per seed' if several else ''}. Losses of different objectives are not comparable; those "
            f"that span more than a factor of 30 are logarithmic.{_proportions(scene)}"
        )
        yield Sketch("training-curves", "Training, epoch by epoch", caption + which(rows, shown), told, made)


def _proportions(scene: Scene) -> str:
    """That two accuracies are not of the same proportions of classes, a space before it, where they are not."""
    train, validation = (scene.board.dataset.counts.get(part, ()) for part in ("train", "validation"))
    if not train or not validation or max(train) * min(validation) <= IMBALANCE * min(train) * max(validation):
        return ""
    return " Training and validation images differ in class proportions, so their accuracies are not comparable."


def _told(row: Row, found: Sequence[History]) -> str:
    train = np.mean([history.train_accuracy[-1] for history in found])
    validation = np.mean([history.validation_accuracy[-1] for history in found])
    last = max(int(history.epochs[-1]) for history in found)
    return (
        f"{short(row.label)}: {pct(float(train))} training and {pct(float(validation))} validation accuracy after "
        f"{counted(last, 'epoch')}."
    )
