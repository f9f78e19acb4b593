"""Success of optimized noise over its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Row
from robbench.leaderboards.markdown import number
from robbench.leaderboards.plots._labels import PointLabel, mark_box, write_labels
from robbench.leaderboards.plots._rows import leading, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import COLORS, MARKERS, lay_out, share_axis, sheet, spans
from robbench.leaderboards.plots._words import pct, short
from robbench.results.schema import ConditionSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2


@dataclass(frozen=True)
class _Point:
    c: float
    size: float
    success: Estimate


Lines = Mapping[str, list[_Point]]


@register_figure("noise")
@dataclass(frozen=True)
class NoiseCost(Figure):
    """How often optimized noise reaches its target, over its size."""

    section = "noise"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A panel per target, a line per start, a point per price, for each leading row."""
        by_row = {row.label: _panels(scene, row) for row in scene.board.rows}
        rows = [row for row in scene.board.rows if by_row[row.label]]
        shown = leading(rows)
        for place, row in enumerate(shown, 1):
            yield _draw(scene, row, by_row[row.label], f"noise-{place}", which(rows, shown))


def _panels(scene: Scene, row: Row) -> dict[str, Lines]:
    """Points by target and start, of targets for which the price was varied or the start."""
    found: dict[str, dict[str, list[_Point]]] = {}
    for condition in scene.board.conditions:
        point = _point(row, condition)
        if point:
            start = str(condition.stages[0].parameters.get("start"))
            found.setdefault(str(condition.target), {}).setdefault(start, []).append(point)
    for lines in found.values():
        for points in lines.values():
            points.sort(key=lambda point: point.c)
    return {target: lines for target, lines in found.items() if sum(map(len, lines.values())) > 1}


def _point(row: Row, condition: ConditionSpec) -> _Point | None:
    if [stage.name for stage in condition.stages] != ["noise-optimization"]:
        return None
    details = row.cells[condition.label].details or {}
    success, size = details.get("targeted_success"), details.get("l1_median")
    if success is None or size is None:
        return None
    return _Point(float(condition.stages[0].parameters["c"]), size.value, success)


def _draw(scene: Scene, row: Row, panels: Mapping[str, Lines], name: str, shown: str) -> Sketch:
    columns = min(COLUMNS, len(panels))
    bands = -(-len(panels) // columns)
    made, grid = sheet(0.6 + 2.9 * bands, bands, columns, sharex=True, sharey=True)
    starts = list(dict.fromkeys(start for lines in panels.values() for start in lines))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (target, lines) in zip(grid.flat, panels.items(), strict=False):
        for start, points in lines.items():
            look = starts.index(start) % len(COLORS)
            values, reach = spans([point.success for point in points])
            across = [point.size for point in points]
            axes.errorbar(
                across,
                values,
                yerr=reach,
                color=COLORS[look],
                marker=MARKERS[look],
                elinewidth=0.8,
                capsize=2,
                label=start,
            )
        share_axis(axes)
        axes.set_ylim(-2, 108)
        axes.set_title(scene.fonts.text(f"Towards {_target(scene, target)}", 34), loc="left")
    _size_axis(grid[0, 0], [point.size for lines in panels.values() for points in lines.values() for point in points])
    for axes in grid[:, 0]:
        axes.set_ylabel("Target reached")
    for axes in list(grid.flat[: len(panels)])[-columns:]:
        axes.set_xlabel("Median size of the noise (L1)")
        axes.tick_params(labelbottom=True)
    handles: dict[str, Any] = {}
    for axes in grid.flat[: len(panels)]:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, title="Noise starts")
    lay_out(made)
    for axes, lines in zip(grid.flat, panels.values(), strict=False):
        _name_prices(axes, {COLORS[starts.index(start) % len(COLORS)]: points for start, points in lines.items()})
    told = " ".join(_told(scene, target, lines) for target, lines in panels.items())
    caption = (
        f"{told} Success of optimized noise over its median size (L1, in units of one pixel from black to white), "
        "with 95 % intervals. Numbers at the points: the weight C of the noise's size."
    )
    alt = f"Line plots of success over size of the noise. {told}"
    return Sketch(name, f"Targeted noise: {short(row.label)}", caption + shown, alt, made)


def _name_prices(axes: Axes, lines: Mapping[str, Sequence[_Point]]) -> None:
    """Write the price beside each point, by color of its line."""
    spots = [
        PointLabel(f"{point.c:g}", point.size, 100 * point.success.value, color)
        for color, points in lines.items()
        for point in points
    ]
    write_labels(axes, spots, [mark_box(axes, spot.x, spot.y) for spot in spots])


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Logarithmic where sizes above 0 span more than a factor of 30, linear around 0 where some are 0."""
    positive = [size for size in sizes if size > 0]
    if positive and max(positive) > 30 * min(positive):
        if len(positive) == len(sizes):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))
            axes.set_xlim(left=0)
    else:
        axes.set_xlim(left=0)


def _target(scene: Scene, target: str) -> str:
    words = {
        "next": "the next class",
        "random": "a random class",
        "least-likely": "the least likely class",
        "all": "all classes in turn",
    }
    return target if target in scene.board.dataset.class_names else words.get(target, target)


def _told(scene: Scene, target: str, lines: Lines) -> str:
    """What the highest price takes from the start that succeeds most often at the lowest."""
    start, points = max(lines.items(), key=lambda line: line[1][0].success.value)
    cheap, dear = points[0], points[-1]
    text = f"Towards {short(_target(scene, target), 30)} from a {short(start)} start: {_at(cheap)}"
    return f"{text}, {_at(dear)}." if dear.c != cheap.c else f"{text}."


def _at(point: _Point) -> str:
    return f"{pct(point.success.value)} at C = {point.c:g} with median size {number(point.size)}"
