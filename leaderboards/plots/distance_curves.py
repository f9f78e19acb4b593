"""Robust accuracy over distance, attack by attack, beside the best known distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.optimality import ENVELOPE, NormAttacks, NormComparison
from robbench.leaderboards.plots._rows import leading, which
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import BLACK, COLORS, share_axis, sheet
from robbench.leaderboards.plots._words import pct, short
from robbench.leaderboards.tables.minimal_norms import without_norm
from robbench.results.schema import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = tuple(color for color in COLORS if color != BLACK)


@register_figure("distance-curves")
@dataclass(frozen=True)
class DistanceCurves(Figure):
    """Robust accuracy over distance under each minimal-norm attack and under the best of all."""

    section = "strength"
    position = 25

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A drawing for each norm with several such attacks, a panel for each leading row."""
        found = {attacks.norm: attacks for attacks in NormAttacks.of(scene.table)}
        for compared in scene.board.minimal_norms:
            yield _drawn(scene, compared, found[compared.norm])


def _drawn(scene: Scene, compared: NormComparison, attacks: NormAttacks) -> Sketch:
    rows = [row for row in scene.board.rows if row.label in compared.lines]
    shown, lines = leading(rows), _best_of_each(compared, attacks)
    made, panels = sheet(3.4 + 0.2 * len(lines), 1, len(shown), sharey=True)
    for axes, row in zip(panels.flat, shown, strict=True):
        distances = attacks.distances(scene.table, row.label)
        best = np.concatenate(distances[ENVELOPE])
        largest = best[np.isfinite(best)].max(initial=0.0) or 1.0
        for color, label in zip(_COLORS, lines, strict=False):
            _step(axes, np.concatenate(distances[label]), largest, scene.condition(without_norm(label)), color=color)
        _step(axes, best, largest, ENVELOPE, color=BLACK, linewidth=2.2)
        axes.set_title(scene.fonts.text(row.label, 34), loc="left")
        axes.set_xlabel(f"Distance ({compared.norm.capitalize()})")
        share_axis(axes)
    panels[0, 0].set_ylabel("Robust accuracy")
    made.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    told = " ".join(_told(lines, compared, row.label) for row in shown)
    caption = (
        f"{told} Share of images robust to the changes of at most each distance that the attack found, up to the "
        f"largest of the best known; of each attack the setting of the highest optimality; n = {compared.n} images."
    )
    title = f"Minimal-norm attacks: {compared.norm.capitalize()}"
    alt = f"Step plots of robust accuracy over distance. {told}"
    return Sketch(f"distance-curves-{compared.norm}", title, caption + which(rows, shown), alt, made)


def _best_of_each(compared: NormComparison, attacks: NormAttacks) -> list[str]:
    """Of each attack the condition with the highest mean optimality, the best attack first; as many as have colors."""
    means = {label: _mean(compared, label) for label in compared.conditions}
    best: dict[str, str] = {}
    for spec in sorted(attacks.seeking, key=lambda spec: -means[spec.label]):
        best.setdefault(spec.stages[0].name, spec.label)
    return list(best.values())[: len(_COLORS)]


def _mean(compared: NormComparison, label: str) -> float:
    local = [reached[label].optimality for reached in compared.lines.values()]
    return fmean([figure.value for figure in local if figure] or [0.0])


def _step(axes: Axes, distances: Floats, largest: float, label: str, **look: Any) -> None:
    at = np.unique(np.concatenate([[0.0], distances[distances <= largest], [largest]]))
    left = [100 * float((distances > radius).mean()) for radius in at]
    axes.step(at, left, where="post", label=label, **look)


def _told(lines: list[str], compared: NormComparison, row: str) -> str:
    figures: Mapping[str, float] = {
        label: figure.value for label in lines if (figure := compared.lines[row][label].optimality)
    }
    parts = [f"{short(without_norm(label))} {pct(value)}" for label, value in figures.items()]
    return f"Optimality on {short(row)}: {', '.join(parts) or 'not defined'}."
