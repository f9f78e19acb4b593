"""Robust accuracy over eps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robbench.core.registry import register_figure
from robbench.leaderboards.plots._curves import drawn
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch


@register_figure("robust-accuracy")
@dataclass(frozen=True)
class RobustAccuracy(Figure):
    """Robust accuracy over eps, a drawing for each norm."""

    section = "strength"
    position = 10

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """The drawing of the first norm is a main one."""
        for place, curve in enumerate(scene.board.strength):
            yield from drawn(
                scene,
                curve,
                f"robust-accuracy-{curve.norm}",
                f"Robust accuracy over eps ({curve.label})",
                f"Share of test images robust, up to each eps, to the {curve.label} attacks that were run at all of "
                "them, with 95 % bands.",
                f"eps ({curve.label})",
                place == 0,
            )
