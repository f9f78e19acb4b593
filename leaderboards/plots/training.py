"""How training went, epoch by epoch: row by row, and by learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robbench.core.registry import register_figure
from robbench.leaderboards.artifact_reader import History
from robbench.leaderboards.board import IMBALANCE, Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLUE, COLORS, MARKERS, VERMILLION, share_axis, sheet
from robbench.leaderboards.plots._words import pct, short
from robbench.results.schema import digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3


@register_figure("training-curves")
@dataclass(frozen=True)
class TrainingCurves(Figure):
    """Loss and accuracy over epochs, on training and validation images."""

    section = "training"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Loss and accuracy on training and validation images, a column for each of some rows."""
        found = {row.label: _histories(scene, row) for row in scene.board.rows}
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
                _whole_epochs(axes, found[row.label])
                axes.grid(axis="y")
            losses.set_title(scene.fonts.lines(row.label, 27), fontsize=8.5)
            parts = [[history.train_loss, history.validation_loss] for history in found[row.label]]
            _loss_axis(losses, [values for pair in parts for values in pair])
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


@register_figure("learning-rates")
@dataclass(frozen=True)
class LearningRates(Figure):
    """Loss over epochs for rows that differ in the learning rate alone."""

    section = "training"
    position = 20

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A figure for each group of rows that differ in the learning rate alone."""
        groups: dict[str, list[tuple[float, Row, History]]] = {}
        for row in scene.board.rows:
            found = _histories(scene, row)
            if found and isinstance(row.model.recipe.get("lr"), int | float):
                plain = row.model.model_dump(mode="json", exclude={"label"})
                lr = float(plain["recipe"].pop("lr"))
                groups.setdefault(digest(plain), []).append((lr, row, found[0]))
        studies = [group for group in groups.values() if len({lr for lr, _, _ in group}) > 1]
        for place, group in enumerate(studies, 1):
            yield _draw_rates(scene, f"learning-rates-{place}", sorted(group, key=lambda item: item[0])[: len(COLORS)])


def _draw_rates(scene: Scene, name: str, group: Sequence[tuple[float, Row, History]]) -> Sketch:
    made, panels = sheet(3.0 + 0.1 * len(group), 1, 2)
    for axes, part, title in zip(panels[0], ("train", "validation"), ("Training loss", "Validation loss"), strict=True):
        losses = [getattr(history, f"{part}_loss") for _, _, history in group]
        for place, ((lr, _, history), values) in enumerate(zip(group, losses, strict=True)):
            known = np.isfinite(values)
            end = _diverged(history)
            label = f"{lr:g}{f' (diverged in epoch {end})' if end else ''}"
            # The first lie under the others and are drawn broader, since two that do not learn can be one line.
            look: dict[str, Any] = {
                "color": COLORS[place],
                "ms": 4,
                "marker": MARKERS[place] if len(values) < 12 else None,
            }
            look["lw"] = 1.5 + 2.0 * (len(group) - 1 - place) / len(group)
            axes.plot(history.epochs[known], values[known], **look, label=label if part == "train" else None)
        _loss_axis(axes, losses)
        _whole_epochs(axes, [history for _, _, history in group])
        for place, ((_, _, history), values) in enumerate(zip(group, losses, strict=True)):
            if _diverged(history):
                known = np.flatnonzero(np.isfinite(values))
                epoch = history.epochs[known[-1]] if len(known) else history.epochs[0]
                height = values[known[-1]] if len(known) else axes.get_ylim()[1]
                axes.plot(epoch, height, "X", color=COLORS[place], ms=11, mec="white", clip_on=False, zorder=5)
        axes.set_title(f"{title}{' (logarithmic)' if axes.get_yscale() == 'log' else ''}", loc="left")
        axes.set_xlabel("Epoch")
        axes.grid(axis="y")
    made.legend(loc="outside lower center", ncols=min(4, len(group)), title="Learning rate")
    told = " ".join(_told_rate(lr, history) for lr, _, history in group)
    like, gone = short(group[0][1].label), any(_diverged(history) for _, _, history in group)
    caption = (
        f"{told} Loss per epoch of {len(group)} rows like {like} that differ in the learning rate alone, one training "
        f"each.{' Crosses: last finite loss before divergence.' if gone else ''}"
    )
    return Sketch(name, "Learning rate", caption, told, made)


def _diverged(history: History) -> int | None:
    """The epoch in which a loss stopped being a number, or None."""
    gone = ~(np.isfinite(history.train_loss) & np.isfinite(history.validation_loss))
    return int(history.epochs[np.flatnonzero(gone)[0]]) if gone.any() else None


def _told_rate(lr: float, history: History) -> str:
    end = _diverged(history)
    if end:
        return f"Learning rate {lr:g}: diverged in epoch {end}."
    first, last = history.train_loss[0], history.train_loss[-1]
    if len(history.epochs) < 2:
        return f"Learning rate {lr:g}: training loss {last:.3g} after one epoch."
    same = abs(first - last) <= 0.001 * abs(first)
    return f"Learning rate {lr:g}: training loss {f'stays at {last:.3g}' if same else f'{first:.3g} → {last:.3g}'}."


def _histories(scene: Scene, row: Row) -> list[History]:
    """Those of a row, by seed."""
    known = scene.materials.histories
    return [known[row.label, seed] for seed in row.seeds if (row.label, seed) in known]


def _loss_axis(axes: Axes, losses: Sequence[NDArray[np.float64]]) -> None:
    """Logarithmic where losses span more than a factor of 30, else from 0 on."""
    values = np.concatenate(losses) if losses else np.zeros(0)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    elif len(values) and values.min() >= 0:
        axes.set_ylim(0, 1.08 * values.max() or 1.0)


def _whole_epochs(axes: Axes, found: Sequence[History]) -> None:
    """Let the axis of epochs have whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    last = max(int(history.epochs[-1]) for history in found)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last) if last > 1 else axes.set_xlim(0.5, 1.5)
