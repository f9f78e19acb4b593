"""Images, optimized noise and their sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from robbench.core.registry import register_figure
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.plots._attacked import COLUMNS, before_after, is_noise, shots_of, spread
from robbench.leaderboards.plots._rows import leading
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.results.schema import ConditionSpec

TARGETS = 6
"""Targets of noise at most."""


@register_figure("noise-images")
@dataclass(frozen=True)
class NoiseImages(Figure):
    """Images with optimized noise, a drawing for each target."""

    section = "images"
    position = 30
    photograph = True

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Of the settings that reach a target most often, the one with the least noise."""
        by_target: dict[str, list[ConditionSpec]] = {}
        for condition in scene.board.conditions:
            if is_noise(condition) and condition.target:
                by_target.setdefault(condition.target, []).append(condition)
        for number, specs in enumerate(list(by_target.values())[:TARGETS], 1):
            # Noise may have been asked of other rows than those that lead.
            for row in (*leading(scene.board.rows), *scene.board.rows):
                order = sorted(specs, key=lambda spec: _reach(row.cells[spec.label].details or {}))
                found = next(((spec, shots) for spec in order if (shots := shots_of(scene, row, spec))), None)
                if found:
                    spec, shots = found
                    chosen = [shots[sample] for sample in spread(shots, COLUMNS)]
                    yield before_after(scene, row, spec, chosen, f"noise-images-{number}")
                    break


def _reach(details: Mapping[str, Estimate]) -> tuple[float, float]:
    """Smaller for noise that reaches its target more often and, among equals, is less."""
    success, size = details.get("targeted_success"), details.get("l1_median_success")
    return -(success.value if success else 0.0), size.value if size else 0.0
