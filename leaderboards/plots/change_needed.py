"""Robust accuracy over the size of the change that an attack needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robbench.core.registry import register_figure
from robbench.leaderboards.plots._curves import drawn
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._words import short


@register_figure("change-needed")
@dataclass(frozen=True)
class ChangeNeeded(Figure):
    """Robust accuracy over the size of the smallest change that is known, where attacks look for it."""

    section = "strength"
    position = 20

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """A drawing for each norm in which untargeted attacks look for the smallest change."""
        targets = {condition.label: condition.target for condition in scene.board.conditions}
        curves = [curve for curve in scene.board.sizes if targets[curve.conditions[0]] in (None, "all")]
        for place, curve in enumerate(curves, 1):
            caption = (
                f"Share of test images robust to {short(curve.label)} with a change of at most each size, with 95 % "
                "bands. Marks: quartiles of the smallest changes known."
            )
            title = f"Change needed: {short(curve.label)}"
            size = f"Size of the change ({curve.norm.capitalize()})"
            yield from drawn(scene, curve, f"change-needed-{place}", title, caption, size, False)
