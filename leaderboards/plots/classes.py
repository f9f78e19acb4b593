"""Accuracy of each class: clean, perturbed and attacked side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.leaderboards.board import Row
from robbench.leaderboards.plots._rows import leading, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import ATTACKED, CLEAN, PERTURBED, share_axis, sheet, spans
from robbench.leaderboards.plots._words import pct, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

CLASSES = 16
"""Shown at most; of more, those that fare worst and best."""

Series = Mapping[str, tuple[str, Sequence[Estimate | None]]]


@register_figure("classes")
@dataclass(frozen=True)
class Classes(Figure):
    """Accuracy of each class: clean, perturbed and in the worst case."""

    section = "classes"
    position = 20

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Bars per class, for the leading rows."""
        rows = [row for row in scene.board.rows if _series(scene, row)]
        shown = leading(rows)
        if not shown:
            return
        by_row = {row.label: _series(scene, row) for row in shown}
        places = _places(by_row[shown[0].label])
        names = [scene.class_name(place, 18) for place in places]
        slanted = max(map(len, names)) * len(names) > 80
        made, panels = sheet(0.7 + 1.9 * len(shown) + (0.7 if slanted else 0), len(shown), 1, sharex=True)
        for axes, row in zip(panels[:, 0], shown, strict=True):
            series = by_row[row.label]
            wide = 0.84 / len(series)
            for position, (name, (color, figures)) in enumerate(series.items()):
                values, reach = spans([figures[place] for place in places])
                offset = (position - (len(series) - 1) / 2) * wide
                axes.bar(
                    np.arange(len(places)) + offset,
                    values,
                    0.92 * wide,
                    yerr=reach,
                    color=color,
                    error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": "#333333"},
                    label=scene.fonts.text(name) if axes is panels[0, 0] else None,
                )
            share_axis(axes, "y", "Accuracy")
            axes.set_title(scene.fonts.text(row.label, 80), loc="left")
        axes.set_xticks(range(len(places)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        axes.set_xlim(-0.6, len(places) - 0.4)
        made.legend(loc="outside upper center", ncols=3)
        yield _sketch(scene, rows, shown, by_row, places, made)


def _series(scene: Scene, row: Row) -> dict[str, tuple[str, Sequence[Estimate | None]]]:
    """Figures per class, by what was done to the images, with a color."""
    board = scene.board
    perturbed = row.compared(board.perturbed) if board.perturbed else None
    found: tuple[tuple[str, str, Rates | None], ...] = (
        ("clean", CLEAN, board.clean(row)),
        (str(board.perturbed), PERTURBED, perturbed),
        (f"worst case at {board.threat}", ATTACKED, board.robust(row)),
    )
    return {name: (color, rates.per_class) for name, color, rates in found if rates}


def _places(series: Series) -> list[int]:
    """The classes to show, in their order."""
    figures = list(series.values())[-1][1]
    there = [place for place, figure in enumerate(figures) if figure]
    if len(there) > CLASSES:
        there.sort(key=lambda place: figures[place].value)  # type: ignore[union-attr]
        there = sorted(there[: CLASSES // 2] + there[-CLASSES // 2 :])
    return there


def _sketch(
    scene: Scene,
    rows: Sequence[Row],
    shown: Sequence[Row],
    by_row: Mapping[str, Series],
    places: Sequence[int],
    made: Sheet,
) -> Sketch:
    told = " ".join(f"{short(row.label)}: {_told(scene, by_row[row.label], places)}." for row in shown)
    names = scene.board.dataset.class_names
    caption = f"{told} Share of each class's test images predicted correctly, with 95 % intervals."
    if len(places) < len(names):
        caption += f" Of {len(names)} classes, the {len(places)} that are worst and best in the first row are shown."
    if scene.board.threat:
        caption += " Worst case: robust to every attack of that size."
    alt = f"Bars per class. {told}"
    main = len(names) > 1
    return Sketch("classes", "Accuracy of each class", caption + which(rows, shown), alt, made, main)


def _told(scene: Scene, series: Series, places: Sequence[int]) -> str:
    """``truck from 47 % clean to 3 % (worst case at Linf 0.1), car from 90 % to 60 %``."""
    first, last = next(iter(series)), list(series)[-1]
    before, after = series[first][1], series[last][1]
    known = [place for place in places if before[place] and after[place]]
    pairs = {place: (before[place].value, after[place].value) for place in known}  # type: ignore[union-attr]
    if not pairs:
        return "no class has both"
    low = min(pairs, key=lambda place: pairs[place][1])
    high = max(pairs, key=lambda place: pairs[place][1])
    if first == last:
        return f"{first}, from {pct(pairs[low][0])} ({scene.said(low)}) to {pct(pairs[high][0])} ({scene.said(high)})"
    text = f"{scene.said(low)} from {pct(pairs[low][0])} {first} to {pct(pairs[low][1])} ({short(last)})"
    if high != low:
        text += f", {scene.said(high)} from {pct(pairs[high][0])} to {pct(pairs[high][1])}"
    return text
