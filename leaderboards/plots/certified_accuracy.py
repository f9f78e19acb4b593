"""Certified and robust accuracy over eps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robbench.core.registry import register_figure
from robbench.core.threat_model import format_eps
from robbench.leaderboards.certificates import CertifiedCurve
from robbench.leaderboards.plots._rows import featured, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import ATTACKED, CLEAN, RULE, share_axis, sheet
from robbench.leaderboards.plots._words import pct, short
from robbench.leaderboards.tables.parts import usual

PANELS = 4


@register_figure("certified-accuracy")
@dataclass(frozen=True)
class CertifiedAccuracy(Figure):
    """Certified and robust accuracy over eps, the gap between them shaded, a drawing for each norm."""

    section = "strength"
    position = 12

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A panel for each of a few rows."""
        for curve in scene.board.certified.curves:
            yield from _drawn(scene, curve)


def _drawn(scene: Scene, curve: CertifiedCurve) -> Iterator[Sketch]:
    rows = [row for row in scene.board.rows if row.label in curve.lines]
    shown = featured(rows, PANELS)
    if not shown:
        return
    wide = min(2, len(shown))
    high = -(-len(shown) // wide)
    made, panels = sheet(2.4 * high + 0.5, high, wide, sharex=True, sharey=True)
    # Between sizes that were looked at, the next proof and the last attack hold.
    sizes = np.repeat([0.0, *curve.radii], 2)[1:-1]
    told = []
    for axes, row in zip(panels.flat, shown, strict=False):
        points = [[usual(scene.board)(one).value for one in line] for line in curve.lines[row.label]]
        proved, left = (np.array([100 * value for value in line]) for line in points)
        below, above = np.repeat(proved[1:], 2), np.repeat(left[:-1], 2)
        axes.fill_between(sizes, below, above, color=RULE, lw=0, label="neither proved nor fooled")
        axes.plot(sizes, above, color=ATTACKED, label="robust: no attack succeeds")
        axes.plot(sizes, below, color=CLEAN, label="certified: none can")
        axes.set_title(scene.fonts.text(row.label, 40) + (", flagged" if row.flags else ""))
        share_axis(axes, "y", "")
        middle = (len(curve.radii) + 1) // 2
        numbers = f"{pct(points[0][middle])} certified, {pct(points[1][middle])} robust"
        told.append(f"{short(row.label)}: {numbers} at {format_eps(curve.radii[middle - 1])}.")
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel(f"eps ({curve.norm.capitalize()})")
        axes.set_xlim(0, curve.radii[-1])
    made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    n = next(iter(curve.lines.values()))[0][0].share.n
    caption = f"{told[0]} Certified and robust accuracy up to each eps on the same {n} images; the truth lies between."
    alt = f"Two lines a panel. {' '.join(told)}"
    title = f"Certified and robust accuracy over eps ({curve.norm.capitalize()})"
    yield Sketch(f"certified-accuracy-{curve.norm}", title, caption + which(rows, shown), alt, made, False)
