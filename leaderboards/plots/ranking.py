"""Robustness of the rows: what it costs, and the ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import counted, percent
from robbench.leaderboards.plots._labels import PointLabel, mark_box, write_labels
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import (
    ATTACKED,
    BLUE,
    CLEAN,
    GREY,
    VERMILLION,
    lay_out,
    percent_limits,
    share_axis,
    sheet,
    spans,
)
from robbench.leaderboards.plots._words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

LABELED = 6
"""Rows with their name at most."""
_SMALLEST, _USUAL, _LARGEST = 9.0, 28.0, 240.0
"""Areas of marks, in square points: at least, of the cheapest training where there is room, and at most."""


@dataclass(frozen=True)
class _Mark:
    """A row in the figure; passes are multiples of the cheapest training, areas are in square points."""

    row: Row
    clean: Estimate
    robust: Estimate
    passes: float
    area: float

    @property
    def radius(self) -> float:
        return float(np.sqrt(self.area / np.pi))

    @property
    def color(self) -> str:
        return VERMILLION if self.row.undefended else BLUE


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
        if not board.ranked_by or len(marks) < 2:
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
        axes.set_ylabel(f"Worst case at {scene.fonts.text(board.ranked_by)}")
        _explain(made, marks)
        lay_out(made)
        labels = [
            PointLabel(scene.fonts.text(mark.row.label, 60), *_point(mark), mark.color, mark.radius) for mark in named
        ]
        taken = [mark_box(axes, *_point(mark), 0.8 * mark.radius) for mark in marks]
        write_labels(axes, labels, taken, far=True)
        yield _sketch(scene, marks, made)


def _marks(board: Board) -> list[_Mark]:
    """The ranked rows, best first; those without a count of passes as the cheapest."""
    ranked = [row for row in board.rows if row.rank]
    times = {row.label: board.times(ranked[0], row) for row in ranked}
    least = min((found for found in times.values() if found), default=1.0)
    unit = min(_USUAL, _LARGEST * least / max((found for found in times.values() if found), default=1.0))
    marks = []
    for row in ranked:
        clean, robust = board.clean(row), board.ranking(row)
        if clean and robust:
            passes = (times[row.label] or least) / least
            marks.append(_Mark(row, clean.balanced, robust.balanced, passes, max(_SMALLEST, unit * passes)))
    return marks


def _named(marks: Sequence[_Mark]) -> list[_Mark]:
    """The best and the best undefended row, then those that no other beats in both accuracies, then from the top."""
    lead = {row.label for row in leading([mark.row for mark in marks])}
    front = [mark for mark in marks if not any(_beats(other, mark) for other in marks)]
    order = [*(mark for mark in marks if mark.row.label in lead), *front, *marks]
    return list({mark.row.label: mark for mark in order}.values())[:LABELED]


def _beats(one: _Mark, other: _Mark) -> bool:
    pairs = ((one.clean.value, other.clean.value), (one.robust.value, other.robust.value))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _point(mark: _Mark) -> tuple[float, float]:
    return 100 * mark.clean.value, 100 * mark.robust.value


def _ends(found: Estimate) -> list[float]:
    return [100 * end for end in (found.low, found.value, found.high) if end is not None]


def _draw_mark(axes: Axes, mark: _Mark, named: bool) -> None:
    x, y = _point(mark)
    bars: dict[str, Any] = {"color": mark.color, "alpha": 0.55 if named else 0.18, "lw": 0.8, "zorder": 1}
    axes.hlines(y, min(_ends(mark.clean)), max(_ends(mark.clean)), **bars)
    axes.vlines(x, min(_ends(mark.robust)), max(_ends(mark.robust)), **bars)
    bare = mark.row.undefended
    axes.scatter(
        x,
        y,
        s=mark.area,
        marker="D" if bare else "o",
        facecolor="white" if bare else mark.color,
        edgecolor=mark.color if bare else "white",
        linewidth=1.3 if bare else 0.6,
        alpha=0.9,
        zorder=3 if named else 2,
    )


def _explain(made: Sheet, marks: Sequence[_Mark]) -> None:
    """The legend: what marks mean, and how many passes their area stands for."""
    from matplotlib.lines import Line2D

    def entry(text: str, area: float, color: str, bare: bool = False) -> Line2D:
        look: dict[str, Any] = {"mec": color if bare else "white", "mfc": "white" if bare else color}
        return Line2D([], [], ls="", marker="D" if bare else "o", ms=float(np.sqrt(area)), label=text, **look)

    bare = [mark.row.undefended for mark in marks]
    entries = [entry("defended", _USUAL, BLUE)] * (not all(bare)) + [
        entry("no defense", _USUAL, VERMILLION, True)
    ] * any(bare)
    cheap, dear = min(marks, key=lambda mark: mark.passes), max(marks, key=lambda mark: mark.passes)
    if dear.passes >= 1.5:
        entries += [entry("training passes × 1", cheap.area, GREY), entry(f"× {dear.passes:.0f}", dear.area, GREY)]
    made.legend(handles=entries, loc="outside upper center", ncols=len(entries))


def _sketch(scene: Scene, marks: Sequence[_Mark], made: Sheet) -> Sketch:
    best = marks[0]
    bare = next((mark for mark in marks if mark.row.undefended), None)
    told = f"Best: {_told(best)}."
    if bare is best:
        told += " It has no defense."
    elif bare is not None:
        spent = scene.board.times(bare.row, best.row)
        gain, cost = (
            100 * (one.value - other.value) for one, other in ((best.robust, bare.robust), (best.clean, bare.clean))
        )
        told += f" Over the best row without defense ({_told(bare)}): {gain:+.1f} points worst case, {cost:+.1f} clean"
        told += f", {spent:.1f} × the training passes." if spent else "."
    caption = (
        f"{told} Accuracy averaged over classes, with 95 % intervals; dotted: nothing lost to attacks. Area: passes of "
        "training, that of a warm start included."
    )
    unnamed = len(marks) - len(_named(marks))
    if unnamed > 0:
        caption += f" {counted(unnamed, 'row')} without a name: see the ranking."
    alt = f"Scatter plot of {counted(len(marks), 'row')} by clean and worst-case robust accuracy. {told}"
    return Sketch("clean-vs-robust", "What robustness costs", caption, alt, made, main=True)


def _told(mark: _Mark) -> str:
    clean, robust = _point(mark)
    return f"{short(mark.row.label)}, worst case {robust:.1f} %, clean {clean:.1f} %"


ROWS = 20


@register_figure("ranking")
@dataclass(frozen=True)
class Ranking(Figure):
    """Clean and worst-case robust accuracy of the ranked rows, best first."""

    section = "ranking"
    position = 20

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A line per ranked row, at most twenty."""
        board = scene.board
        ranked = [row for row in board.rows if row.rank]
        if not ranked:
            return
        rows = _few(ranked)
        made, panels = sheet(0.85 + 0.36 * len(rows))
        axes = panels[0, 0]
        places = list(range(len(rows)))
        clean = [_balanced(board, row, False) for row in rows]
        worst = [_balanced(board, row, True) for row in rows] if board.ranked_by else []
        for place, before, after in zip(places, clean, worst, strict=False):
            if before and after:
                axes.plot([100 * after.value, 100 * before.value], [place, place], color="#BBBBBB", lw=2.5, zorder=1)
        after_label = f"worst case at {scene.fonts.text(board.ranked_by)}"
        for figures, color, marker, label in ((clean, CLEAN, "o", "clean"), (worst, ATTACKED, "D", after_label)):
            if any(figures):
                values, reach = spans(figures)
                axes.errorbar(
                    values,
                    places,
                    xerr=reach,
                    fmt=marker,
                    color=color,
                    elinewidth=1.2,
                    capsize=2.5,
                    ms=5.5,
                    label=label,
                )
        axes.set_yticks(places, [row.rank for row in rows])
        for place, row in zip([-1, *places], [None, *rows], strict=True):
            text = scene.fonts.lines(f"{row.label}{' (flagged)' if row.flags else ''}", 34) if row else "Rank"
            axes.annotate(
                text,
                (0, max(place, -0.6)),
                (-26 if row else -3, 0 if row else 4),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        share_axis(axes, "x", "Accuracy, averaged over classes")
        axes.set_xlim(left=-1.5)
        axes.axvline(100 / len(board.dataset.class_names), color=GREY, lw=0.9, ls=":", label="always the same class")
        made.legend(loc="outside upper center", ncols=3)
        yield _ranking_sketch(board, ranked, rows, made)


def _few(ranked: list[Row]) -> list[Row]:
    """The first twenty, the last of which gives way to the highest undefended one where that is further down."""
    reference = leading(ranked)[-1]
    top = ranked[:ROWS]
    return top if reference in top else [*top[:-1], reference]


def _balanced(board: Board, row: Row, attacked: bool) -> Estimate | None:
    rates = board.ranking(row) if attacked else board.clean(row)
    return rates.balanced if rates else None


def _ranking_sketch(board: Board, ranked: list[Row], rows: list[Row], made: Sheet) -> Sketch:
    first, *others = leading(ranked)
    caption = f"Best: {_accuracies(board, first)}."
    for row in others:
        caption += f" Best undefended: {_accuracies(board, row)}."
    worst = f" and in the worst case at {board.ranked_by} (diamonds)" if board.ranked_by else ""
    caption += f" Accuracy on clean images (circles){worst}, averaged over classes, with 95 % intervals."
    caption += " Dotted: always predicting the same class."
    if len(rows) < len(ranked):
        extra = " and the best undefended one" if rows != ranked[:ROWS] else ""
        caption += f" The first {len(rows) - bool(extra)} of {counted(len(ranked), 'ranked row')}{extra} are shown."
    unranked = len(board.rows) - len(ranked)
    if unranked:
        caption += f" Not ranked: {counted(unranked, 'row')}."
    alt = "; ".join(f"{row.rank} {_accuracies(board, row)}" for row in rows)
    title = "Clean and worst-case robust accuracy" if board.ranked_by else "Clean accuracy"
    return Sketch("ranking", title, caption, f"Dot plot of accuracy by row. {alt}.", made, main=True)


def _accuracies(board: Board, row: Row) -> str:
    before, after = _balanced(board, row, False), _balanced(board, row, True)
    if board.ranked_by and before and after:
        return f"{short(row.label)}, clean {percent(before)} %, worst case {percent(after)} %"
    return f"{short(row.label)}, {percent(after or before)} %"
