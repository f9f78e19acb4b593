"""What the learning rate does: rows that differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.artifact_reader import History
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._histories import histories, loss_axis, whole_epochs
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import COLORS, MARKERS, sheet
from robbench.leaderboards.plots._words import short
from robbench.results.schema import digest


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
            found = histories(scene, row)
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
        loss_axis(axes, losses)
        whole_epochs(axes, [history for _, _, history in group])
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
