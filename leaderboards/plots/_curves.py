"""How much stays right as the change may be larger, as a line for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from robbench.core.threat_model import format_eps
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Scene, Sketch
from robbench.leaderboards.plots._style import COLORS, MARKERS, share_axis, sheet, spans
from robbench.leaderboards.plots._words import pct, short
from robbench.leaderboards.tables.parts import extent, usual


def drawn(scene: Scene, curve: Curve, name: str, title: str, caption: str, size: str, main: bool) -> Iterator[Sketch]:
    """A curve of a few rows with its intervals; nothing without a row.

    Args:
        scene: What there is to draw from.
        curve: One of its board's.
        name, title, main: Of the drawing.
        caption: What the curve is of.
        size: Label of the axis of sizes.
    """
    board = scene.board
    rows = [row for row in board.rows if row.label in curve.lines]
    shown = featured(rows)
    if not shown:
        return
    made, panels = sheet(3.1 + 0.2 * len(shown))
    axes = panels[0, 0]
    for place, row in enumerate(shown):
        radii, line = [0.0, *curve.radii], curve.lines[row.label]
        values, reach = spans(list(map(usual(board), (line.clean, *line.points))))
        area = usual(board)(curve.lines[row.label].area).value
        label = f"{scene.fonts.text(row.label, 70)}{', flagged' if row.flags else ''} (area {pct(area)})"
        axes.plot(radii, values, color=COLORS[place], marker=MARKERS[place], label=label)
        axes.fill_between(radii, values - reach[0], values + reach[1], color=COLORS[place], alpha=0.14, lw=0)
    share_axis(axes, "y", "Accuracy, averaged over classes" if board.imbalanced else "Accuracy")
    axes.set_xlabel(size)
    marks = _apart(curve.radii)
    axes.set_xticks([0, *marks], ["0", *map(format_eps, marks)])
    axes.set_xlim(left=0)
    made.legend(loc="outside lower center", ncols=1)
    sound = [row.label for row in shown if not row.flags]
    told = [_told(scene, curve, label) for label in dict.fromkeys((*sound[:1], *sound[-1:]))]
    images = {rates.share.n for row in shown for rates in curve.lines[row.label].points}
    caption = f"{' '.join([*told, caption])} Area: normalized area under the curve; n = {extent(images)} images."
    alt = f"Line plot. {' '.join(_told(scene, curve, row.label) for row in shown)}"
    yield Sketch(name, title, caption + which(rows, shown), alt, made, main)


def _apart(radii: Sequence[float]) -> list[float]:
    """Radii whose labels do not run into one another, the last among them."""
    kept: list[float] = []
    for radius in reversed(radii):
        if radius >= 0.07 * radii[-1] and (not kept or kept[-1] - radius >= 0.07 * radii[-1]):
            kept.append(radius)
    return kept[::-1]


def _told(scene: Scene, curve: Curve, label: str) -> str:
    points = list(map(usual(scene.board), curve.lines[label].points))
    shown = np.unique([0, len(points) // 2, len(points) - 1])
    parts = [f"{pct(points[place].value)} at {format_eps(curve.radii[place])}" for place in shown]
    return f"{short(label)}: {', '.join(parts)}."
