"""The one drawing that stands for a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from robbench.api.report import Report
from robbench.core.errors import RequestError, StoreError, did_you_mean
from robbench.core.registry import Registry
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.plots import figures
from robbench.leaderboards.plots._scene import Scene
from robbench.leaderboards.plots._style import (
    ATTACKED,
    CLEAN,
    PERTURBED,
    Fonts,
    lay_out,
    share_axis,
    sheet,
    spans,
    style,
)
from robbench.leaderboards.table import is_smallest_change

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PREFERRED = ("clean-vs-robust", "robust-accuracy")
"""Figures of boards, of which the first that has something to show is drawn."""


def drawing(report: Report, path: Path | None) -> Drawing:
    """Draw a report; see ``Report.plot``.

    Raises:
        RequestError: If the file's ending is that of no picture.
        StoreError: If the file cannot be written.
    """
    scene = Scene(report.board, report.table, report.materials(), Fonts.installed())
    known = figures(Registry(installed=False))
    with style(scene.fonts):
        drawn = (sketch.sheet for name in PREFERRED for sketch in known[name].draw(scene))
        made = next(drawn, None) or _bars(report, scene)
        lay_out(made)
        if path is not None:
            _write(made, path)
    return made


def _write(made: Drawing, path: Path) -> None:
    endings = made.canvas.get_supported_filetypes()
    ending = path.suffix.lower().removeprefix(".")
    if ending not in endings:
        raise RequestError(f'"{path}" has the ending of no picture; {did_you_mean(ending or "png", endings)}', "path")
    try:
        made.savefig(path.expanduser())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _bars(report: Report, scene: Scene) -> Drawing:
    """Accuracy under every condition of the best row, with intervals."""
    board, row = report.board, report.board.rows[0]
    colors = {"clean": CLEAN, "natural": PERTURBED}
    bars: list[tuple[str, str, Estimate]] = []
    for spec in board.conditions:
        found = row.cells[spec.label].rates
        if found and not is_smallest_change(spec):
            bars.append((scene.condition(spec.label), colors.get(spec.kind, ATTACKED), found.balanced))
    bars += [(f"worst case {threat}", ATTACKED, found.balanced) for threat, found in row.worst.items() if found]
    made, panels = sheet(0.9 + 0.32 * len(bars))
    axes = panels[0, 0]
    values, reach = spans([figure for _, _, figure in bars])
    places = range(len(bars))
    axes.barh(places, values, xerr=reach, color=[color for _, color, _ in bars], error_kw={"lw": 0.9, "capsize": 2})
    axes.set_yticks(places, [scene.fonts.text(label) for label, _, _ in bars])
    axes.invert_yaxis()
    share_axis(axes, "x", f"{scene.fonts.text(row.label)}: accuracy, averaged over classes")
    return made
