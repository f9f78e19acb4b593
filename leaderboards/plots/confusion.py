"""Which class is predicted for which, clean and attacked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robbench.core.registry import register_figure
from robbench.evaluation.metrics.decisions import confusion
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._rows import leading, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import WIDTH, sheet
from robbench.leaderboards.plots._words import pct, short

BESIDE, NUMBERED = 10, 20
"""Up to so many classes two matrices stand side by side with their counts, and so many have counts at all."""


@register_figure("confusion")
@dataclass(frozen=True)
class Confusion(Figure):
    """Confusion matrices of the best and the best undefended row, clean and attacked."""

    section = "classes"
    position = 30

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Two matrices for each leading row."""
        rows = [row for row in scene.board.rows if _matrices(scene, row)]
        shown = leading(rows)
        for number, row in enumerate(shown, 1):
            yield _draw(scene, row, f"confusion-{number}", which(rows, shown))


def _matrices(scene: Scene, row: Row) -> dict[str, NDArray[np.int64]]:
    """Counts by true and predicted class, by condition; on the images that all of them have, so that they compare."""
    labels = dict.fromkeys(label for label in (scene.clean, row.hardest) if label and row.cells[label].confusion)
    outcomes = {label: scene.table.outcomes(row.label, label) or [] for label in labels}
    every = [outcome.ids for found in outcomes.values() for outcome in found]
    images = functools.reduce(np.intersect1d, every) if every else np.zeros(0, dtype=np.int64)
    if not len(images):
        return {label: np.array(row.cells[label].confusion) for label in labels}
    counts = {}
    for label, found in outcomes.items():
        kept = [(outcome, np.isin(outcome.ids, images)) for outcome in found]
        parts = [confusion(one.labels[at], one.final[at], scene.table.num_classes) for one, at in kept]
        counts[label] = np.sum(parts, axis=0)
    return counts


def _draw(scene: Scene, row: Row, name: str, shown: str) -> Sketch:
    matrices = _matrices(scene, row)
    size = len(scene.board.dataset.class_names)
    names = scene.class_names(12) if size <= NUMBERED else [""]
    longest = max(map(len, names))
    upright = 0.075 * longest if longest > 2 else 0.0
    beside = size <= BESIDE or size > NUMBERED
    if beside:
        made, panels = sheet(0.75 + (WIDTH - 1.6 - 0.075 * longest) / 2 + upright, 1, len(matrices), sharey=True)
    else:
        made, panels = sheet((0.6 + 0.29 * size) * len(matrices) + upright, len(matrices), 1, sharex=True)
    for place, (axes, (label, counts)) in enumerate(zip(panels.flat, matrices.items(), strict=True)):
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        mesh = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        if size <= NUMBERED:
            axes.set_yticks(range(size), names)
            axes.set_xticks(range(size), names, rotation=90 if upright else 0)
            _write(axes, counts, shares)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title = "Clean" if label == scene.clean else scene.condition(label, 34)
        axes.set_title(f"{title}, n = {counts.sum():,}")
        if not beside or place == 0:
            axes.set_ylabel("True class")
        if beside or place == len(matrices) - 1:
            axes.set_xlabel("Predicted class")
    bar = made.colorbar(mesh, ax=panels, shrink=0.6 if beside else 0.4, aspect=25, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    bar.set_label("Share of the true class")
    told = " ".join(_told(scene, label, counts) for label, counts in matrices.items())
    counted = "Numbers are images, s" if size <= NUMBERED else "S"
    caption = f"{told} Rows: true class; columns: predicted class. {counted}hades are shares of the true class."
    alt = f"Confusion matrices of {short(row.label)}. {told}"
    return Sketch(name, f"Confusion: {short(row.label)}", caption + shown, alt, made)


def _write(axes: object, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    crowded = len(counts) > 6 and counts.max() >= 1000
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
            color = "white" if shares[true, predicted] > 0.6 else "black"
            axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=6 if crowded else 8)  # type: ignore[attr-defined]


def _told(scene: Scene, label: str, counts: NDArray[np.int64]) -> str:
    condition = "Clean" if label == scene.clean else short(label)
    right = pct(counts.trace() / max(1, counts.sum()))
    wrong = counts - np.diag(counts.diagonal())
    if not wrong.any():
        return f"{condition}: every prediction is right."
    true, predicted = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return (
        f"{condition}: {right} right, most often wrong {scene.said(int(true))} predicted as "
        f"{scene.said(int(predicted))} ({counts[true, predicted]:,} of {counts[true].sum():,})."
    )
