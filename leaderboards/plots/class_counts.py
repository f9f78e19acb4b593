"""How many images of each class there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.board import IMBALANCE
from robbench.leaderboards.markdown import listed
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLUE, GREEN, ORANGE, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

NAMED = 40
"""Up to so many classes each has a bar with its name and number."""
LOGARITHMIC = 20
"""From this ratio on, bars could not be read on a plain axis."""

PARTS = {"train": ("Training", BLUE), "validation": ("Validation", ORANGE), "test": ("Test", GREEN)}


@register_figure("class-counts")
@dataclass(frozen=True)
class ClassCounts(Figure):
    """How many images of each class the parts of the data set have."""

    section = "data"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A panel for each part of the data set."""
        dataset = scene.board.dataset
        parts = {name: dataset.counts[name] for name in PARTS if any(dataset.counts.get(name, ()))}
        if not parts:
            return
        size = len(dataset.class_names)
        named = size <= NAMED
        steep = any(max(part) > LOGARITHMIC * max(1, min(part)) for part in parts.values())
        made, panels = sheet(0.7 + 0.22 * size if named else 2.8, 1, len(parts), sharey=named)
        for axes, (name, part) in zip(panels[0], parts.items(), strict=True):
            title, color = PARTS[name]
            axes.set_title(f"{title} ({sum(part):,})", loc="left")
            if named:
                bars = axes.barh(range(size), part, 0.72, color=color, log=steep)
                axes.bar_label(bars, [f"{count:,}" for count in part], padding=2, fontsize=8.5)
                axes.spines["bottom"].set_visible(False)
                axes.tick_params(length=0, which="both", labelbottom=False)
                axes.set_xlim(0.5 if steep else 0, _room(max(part), steep))
                axes.set_ylim(size - 0.5, -0.5)
            else:
                axes.fill_between(range(size), sorted(part, reverse=True), step="mid", color=color, lw=0)
                axes.set_xlabel("Classes by size")
                axes.set(xlim=(-0.5, size - 0.5), yscale="log" if steep else "linear")
                axes.set_ylim(bottom=0.5 if steep else 0)
        if named:
            panels[0, 0].set_yticks(range(size), scene.class_names(22))
        else:
            panels[0, 0].set_ylabel("Images")
        yield _sketch(scene, parts, steep, made)


def _room(largest: int, steep: bool) -> float:
    """Where an axis ends that has room for the number behind its longest bar."""
    digits = len(f"{largest:,}")
    if steep:
        return float(0.5 * (2 * largest) ** (1 / (1 - 0.055 * digits)))
    return largest / (1 - 0.055 * digits)


def _sketch(scene: Scene, parts: Mapping[str, tuple[int, ...]], steep: bool, made: Sheet) -> Sketch:
    told = []
    for name, part in parts.items():
        few, many = int(np.argmin(part)), int(np.argmax(part))
        if part[few] == part[many]:
            told.append(f"{part[few]:,} of each class in the {PARTS[name][0].lower()} set")
        else:
            told.append(
                f"from {part[few]:,} of {scene.said(few)} to {part[many]:,} of "
                f"{scene.said(many)} in the {PARTS[name][0].lower()} set"
            )
    text = f"Images per class: {listed(told)}."
    scale = " The scale is logarithmic." if steep else ""
    main = any(max(part) > IMBALANCE * max(1, min(part)) for part in parts.values())
    return Sketch("class-counts", "Images per class", text + scale, f"Bar chart. {text}", made, main)
