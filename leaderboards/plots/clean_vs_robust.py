"""What robustness costs: clean against worst-case robust accuracy, and passes of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._labels import Box, PointLabel, mark_box, span_box, write_labels
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLUE, GREEN, GREY, VERMILLION, lay_out, percent_limits, sheet
from robbench.leaderboards.plots._words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

LABELED, SMALL = 6, 12
"""Rows with their name at most, and up to how many rows all have theirs."""
_SMALLEST, _USUAL, _LARGEST = 9.0, 28.0, 240.0
"""Areas of marks, in square points: at least, of the cheapest training where there is room, and at most."""


@dataclass(frozen=True)
class _Look:
    """How rows of a kind are drawn."""

    name: str
    color: str
    marker: str
    filled: bool

    @property
    def edges(self) -> dict[str, Any]:
        return {"mfc": self.color if self.filled else "white", "mec": "white" if self.filled else self.color}


DEFENDED = _Look("defended", BLUE, "o", filled=True)
BARE = _Look("no defense", VERMILLION, "D", filled=False)
OTHERS = _Look("trained by others", GREEN, "s", filled=True)


@dataclass(frozen=True)
class _Mark:
    """A row in the figure; passes are multiples of the cheapest training, where known, areas are in square points."""

    row: Row
    clean: Estimate
    robust: Estimate
    passes: float | None
    area: float

    @property
    def radius(self) -> float:
        return float(np.sqrt(self.area / np.pi))

    @property
    def look(self) -> _Look:
        return OTHERS if self.row.model.external else BARE if self.row.undefended else DEFENDED


@register_figure("clean-vs-robust")
@dataclass(frozen=True)
class CleanVsRobust(Figure):
    """Worst-case robust against clean accuracy, the area of a mark being the passes of training."""

    section = "ranking"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A mark for each ranked row, with the names of those that lead."""
        board = scene.board
        marks = _marks(board)
        if not board.threat or len(marks) < 2:
            return
        made, panels = sheet(4.6)
        axes = panels[0, 0]
        named = _named(marks)
        for mark in reversed(marks):
            _draw_mark(axes, mark, mark in named)
        percent_limits(axes, "x", [end for mark in marks for end in _ends(mark.clean)])
        percent_limits(axes, "y", [end for mark in marks for end in _ends(mark.robust)])
        axes.axline((0, 0), slope=1, color=GREY, lw=0.9, ls=":", zorder=0)
        axes.set_xlabel("Clean accuracy, averaged over classes")
        axes.set_ylabel(f"Worst case at {scene.fonts.text(board.threat)}")
        _explain(made, marks)
        lay_out(made)
        labels = [
            PointLabel(scene.fonts.text(mark.row.label, 60), *_point(mark), mark.look.color, mark.radius)
            for mark in named
        ]
        taken = [mark_box(axes, *_point(mark), 0.8 * mark.radius) for mark in marks]
        written = write_labels(axes, labels, taken, _lines(axes, marks, named), far=True)
        yield _sketch(scene, marks, made, len(marks) - len(written))


def _marks(board: Board) -> list[_Mark]:
    """The ranked rows, best first; those without a count of passes, as of models of others, in the usual size."""
    ranked = [row for row in board.rows if row.rank]
    first = next((row for row in ranked if row.training), None)
    times = {row.label: board.times(first, row) if first else None for row in ranked}
    known = [found for found in times.values() if found]
    least = min(known, default=1.0)
    unit = min(_USUAL, _LARGEST * least / max(known, default=1.0))
    marks = []
    for row in ranked:
        clean, robust = board.clean(row), board.robust(row)
        if clean and robust:
            spent = times[row.label]
            passes = spent / least if spent else None
            area = max(_SMALLEST, unit * passes) if passes else _USUAL
            marks.append(_Mark(row, clean.balanced, robust.balanced, passes, area))
    return marks


def _named(marks: Sequence[_Mark]) -> list[_Mark]:
    """The best and the best undefended row, then those that no other beats in both accuracies, then from the top."""
    lead = {row.label for row in leading([mark.row for mark in marks])}
    front = [mark for mark in marks if not any(_beats(other, mark) for other in marks)]
    order = [*(mark for mark in marks if mark.row.label in lead), *front, *marks]
    return list({mark.row.label: mark for mark in order}.values())[: LABELED if len(marks) > SMALL else SMALL]


def _beats(one: _Mark, other: _Mark) -> bool:
    pairs = ((one.clean.value, other.clean.value), (one.robust.value, other.robust.value))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _point(mark: _Mark) -> tuple[float, float]:
    return 100 * mark.clean.value, 100 * mark.robust.value


def _ends(found: Estimate) -> list[float]:
    return [100 * end for end in (found.low, found.value, found.high) if end is not None]


def _draw_mark(axes: Axes, mark: _Mark, named: bool) -> None:
    x, y = _point(mark)
    look = mark.look
    bars: dict[str, Any] = {"color": look.color, "alpha": 0.55 if named else 0.18, "lw": 0.8, "zorder": 1}
    axes.hlines(y, min(_ends(mark.clean)), max(_ends(mark.clean)), **bars)
    axes.vlines(x, min(_ends(mark.robust)), max(_ends(mark.robust)), **bars)
    axes.scatter(
        x,
        y,
        s=mark.area,
        marker=look.marker,
        facecolor=look.edges["mfc"],
        edgecolor=look.edges["mec"],
        linewidth=0.6 if look.filled else 1.3,
        alpha=0.9,
        zorder=3 if named else 2,
    )


def _explain(made: Sheet, marks: Sequence[_Mark]) -> None:
    """The legend: what marks mean, and how many passes their area stands for."""
    from matplotlib.lines import Line2D

    def entry(text: str, area: float, look: _Look) -> Line2D:
        return Line2D([], [], ls="", marker=look.marker, ms=float(np.sqrt(area)), label=text, **look.edges)

    there = {mark.look for mark in marks}
    entries = [entry(look.name, _USUAL, look) for look in (DEFENDED, BARE, OTHERS) if look in there]
    areas = {mark.passes: mark.area for mark in marks if mark.passes}
    if areas and max(areas) >= 1.5:
        size = replace(DEFENDED, color=GREY)
        entries.append(entry("training passes × 1", areas[min(areas)], size))
        entries.append(entry(f"× {max(areas):.0f}", areas[max(areas)], size))
    made.legend(handles=entries, loc="outside upper center", ncols=len(entries))


def _lines(axes: Axes, marks: Sequence[_Mark], named: Sequence[_Mark]) -> list[Box]:
    """The intervals of the rows that are named, and the diagonal."""
    boxes = []
    for mark in marks if len(marks) <= SMALL else named:
        x, y = _point(mark)
        boxes.append(span_box(axes, (min(_ends(mark.clean)), y), (max(_ends(mark.clean)), y)))
        boxes.append(span_box(axes, (x, min(_ends(mark.robust))), (x, max(_ends(mark.robust)))))
    steps = np.linspace(*axes.get_xlim(), 200)
    boxes += [mark_box(axes, step, step, 1.5) for step in steps if axes.get_ylim()[0] <= step <= axes.get_ylim()[1]]
    return boxes


def _sketch(scene: Scene, marks: Sequence[_Mark], made: Sheet, unnamed: int) -> Sketch:
    sound = [mark for mark in marks if not mark.row.flags]
    best, bare = next(iter(sound), None), next((mark for mark in sound if mark.row.undefended), None)
    told = f"Best: {_told(best)}." if best else "Each row has an audit flag."
    if best and bare is best:
        told += " It has no defense."
    elif best and bare:
        spent = scene.board.times(bare.row, best.row)
        gain, cost = (
            100 * (one.value - other.value) for one, other in ((best.robust, bare.robust), (best.clean, bare.clean))
        )
        told += f" Over the best row without defense ({_told(bare)}): {gain:+.1f} points worst case, {cost:+.1f} clean"
        told += f", {spent:.1f} × the training passes." if spent else "."
    caption = f"{told} Accuracy averaged over classes, with 95 % intervals; dotted: nothing lost to attacks."
    if any(mark.passes for mark in marks):
        caption += " Area: passes of training, that of a warm start included."
    if any(mark.look == OTHERS for mark in marks):
        caption += " Of models that others trained, neither defense nor passes are known."
    if unnamed > 0:
        caption += f" {counted(unnamed, 'row')} without a name: see the ranking."
    alt = f"Scatter plot of {counted(len(marks), 'row')} by clean and worst-case robust accuracy. {told}"
    return Sketch("clean-vs-robust", "What robustness costs", caption, alt, made, main=True)


def _told(mark: _Mark) -> str:
    clean, robust = _point(mark)
    return f"{short(mark.row.label)}, worst case {robust:.1f} %, clean {clean:.1f} %"
