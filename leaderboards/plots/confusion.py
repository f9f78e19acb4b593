"""Which class is taken for which, unchanged and attacked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from robbench.leaderboards.board import Row
from robbench.leaderboards.figure_manifest import Picture
from robbench.leaderboards.plots.scene import Scene, Sketch, leading, which
from robbench.leaderboards.plots.style import WIDTH, sheet
from robbench.leaderboards.plots.words import pct, short

BESIDE, NUMBERED = 10, 20
"""Up to so many classes two matrices stand side by side with their counts, and so many have counts at all."""


def confusion(scene: Scene) -> Iterator[Sketch]:
    """Two matrices for each leading row."""
    rows = [row for row in scene.board.rows if _matrices(scene, row)]
    shown = leading(rows)
    for number, row in enumerate(shown, 1):
        yield _draw(scene, row, f"confusion-{number}", which(rows, shown))


def _matrices(scene: Scene, row: Row) -> dict[str, NDArray[np.int64]]:
    """Counts by true class and decision, by condition."""
    labels = [label for label in (scene.clean, row.hardest) if label and row.cells[label].confusion]
    return {label: np.array(row.cells[label].confusion) for label in labels}


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
        axes.set_title(f"{_title(scene, label)}, n = {counts.sum():,}")
        if not beside or place == 0:
            axes.set_ylabel("True class")
        if beside or place == len(matrices) - 1:
            axes.set_xlabel("Decided")
    bar = made.colorbar(mesh, ax=panels, shrink=0.6 if beside else 0.4, aspect=25, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    bar.set_label("Share of the true class")
    told = [f"{_told(scene, label, counts)}" for label, counts in matrices.items()]
    caption = (
        "True classes from top to bottom, decisions from left to right; what lies off the diagonal is wrong. "
        f"{'Numbers are images, s' if size <= NUMBERED else 'S'}hades are shares of the true class. {' '.join(told)}"
    )
    alt = f"Confusion matrices of {short(row.label)}. {' '.join(told)}"
    title = f"Which class is taken for which: {short(row.label)}"
    return Sketch(Picture(name, "accuracy", title, caption + shown, alt), made)


def _title(scene: Scene, label: str) -> str:
    return "Unchanged" if label == scene.clean else scene.condition(label, 34)


def _write(axes: object, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    crowded = len(counts) > 6 and counts.max() >= 1000
    for (true, decided), count in np.ndenumerate(counts):
        if count:
            text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
            color = "white" if shares[true, decided] > 0.6 else "black"
            axes.text(decided, true, text, ha="center", va="center", color=color, fontsize=6 if crowded else 8)  # type: ignore[attr-defined]


def _told(scene: Scene, label: str, counts: NDArray[np.int64]) -> str:
    condition = "Unchanged" if label == scene.clean else f"Under {short(label)}"
    right = pct(counts.trace() / max(1, counts.sum()))
    wrong = counts - np.diag(counts.diagonal())
    if not wrong.any():
        return f"{condition}, every decision is right."
    true, decided = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return (
        f"{condition}, {right} of the decisions are right; most often {scene.said(int(true))} is taken for "
        f"{scene.said(int(decided))} ({counts[true, decided]:,} of {counts[true].sum():,})."
    )
