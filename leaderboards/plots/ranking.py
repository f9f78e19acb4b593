"""Clean and worst-case robust accuracy, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import counted, percent
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import ATTACKED, CLEAN, GREY, share_axis, sheet, spans
from robbench.leaderboards.plots._words import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

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
        worst = [_balanced(board, row, True) for row in rows] if board.threat else []
        for place, before, after in zip(places, clean, worst, strict=False):
            if before and after:
                axes.plot([100 * after.value, 100 * before.value], [place, place], color="#BBBBBB", lw=2.5, zorder=1)
        after_label = f"worst case at {scene.fonts.text(board.threat)}"
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
        ranks = ["Rank", *(row.rank for row in rows)] if len(board.rows) > 1 else [""] * (len(rows) + 1)
        axes.set_yticks(places, ranks[1:])
        for place, row in zip([-1, *places], [None, *rows], strict=True):
            text = scene.fonts.lines(f"{row.label}{' (flagged)' if row.flags else ''}", 34) if row else ranks[0]
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
        yield _sketch(board, ranked, rows, made)


def _few(ranked: list[Row]) -> list[Row]:
    """The first twenty, the last of which gives way to the highest undefended one where that is further down."""
    reference = leading(ranked)[-1]
    top = ranked[:ROWS]
    return top if reference in top else [*top[:-1], reference]


def _balanced(board: Board, row: Row, attacked: bool) -> Estimate | None:
    rates = board.robust(row) if attacked else board.clean(row)
    return rates.balanced if rates else None


def _sketch(board: Board, ranked: list[Row], rows: list[Row], made: Sheet) -> Sketch:
    first, *others = leading(ranked)
    caption = (
        "Each row has an audit flag." if first.flags else f"{'Best: ' * (len(board.rows) > 1)}{_told(board, first)}."
    )
    for row in others if not first.flags else ():
        caption += f" Best undefended: {_told(board, row)}."
    worst = f" and in the worst case at {board.threat} (diamonds)" if board.threat else ""
    caption += f" Accuracy on clean images (circles){worst}, averaged over classes, with 95 % intervals."
    caption += " Dotted: always predicting the same class."
    if len(rows) < len(ranked):
        extra = " and the best undefended one" if rows != ranked[:ROWS] else ""
        caption += f" The first {len(rows) - bool(extra)} of {counted(len(ranked), 'ranked row')}{extra} are shown."
    unranked = len(board.rows) - len(ranked)
    if unranked:
        caption += f" Not ranked: {counted(unranked, 'row')}."
    alt = "; ".join(f"{row.rank} {_told(board, row)}" for row in rows)
    title = "Clean and worst-case robust accuracy" if board.threat else "Clean accuracy"
    return Sketch("ranking", title, caption, f"Dot plot of accuracy by row. {alt}.", made, main=True)


def _told(board: Board, row: Row) -> str:
    before, after = _balanced(board, row, False), _balanced(board, row, True)
    if before and after:
        return f"{short(row.label)}, clean {percent(before)} %, worst case {percent(after)} %"
    return f"{short(row.label)}, {percent(after or before)} %"
