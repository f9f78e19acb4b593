"""The figure my-figure: bars of clean accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure as Sheet
from robbench import Figure, Scene, Sketch, register_figure


@register_figure(
    "my-figure",
    brief="clean accuracy of every model",
)
@dataclass(frozen=True)
class MyFigure(Figure):
    """Clean accuracy of every model, a bar each."""

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """The bars; nothing where no model was tried on clean images."""
        found = {row.label: scene.board.clean(row) for row in scene.board.rows}
        shown = {row: 100 * rate.share.value for row, rate in found.items() if rate}
        if not shown:
            return
        sheet = Sheet(figsize=(6, 1 + 0.3 * len(shown)), layout="constrained")
        axes = sheet.subplots()
        names = [scene.fonts.text(row, 40) for row in shown]
        axes.barh(names, list(shown.values()))
        axes.set_xlabel("clean accuracy, %")
        yield Sketch(
            name="my-figure",
            title="Clean accuracy",
            caption=f"Best: {max(shown.values()):.1f} % clean accuracy.",
            alt="A bar of clean accuracy for each model.",
            sheet=sheet,
        )
