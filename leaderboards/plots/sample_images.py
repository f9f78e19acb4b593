"""What the images look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robbench.core.registry import register_figure
from robbench.leaderboards.markdown import counted
from robbench.leaderboards.plots._scene import Figure, Scene, Sketch
from robbench.leaderboards.plots._style import WIDTH, in_unit, page, place

ACROSS, ACROSS_MANY = 8, 10
ROWS_UP_TO = 12
"""Up to so many classes each has a line of images; of more, each has one image, of at most ``CLASSES``."""
CLASSES = 100
_GAP = 0.05


@register_figure("sample-images")
@dataclass(frozen=True)
class SampleImages(Figure):
    """What images of each class look like."""

    section = "data"
    position = 20
    photograph = True

    def draw(self, scene: Scene) -> Iterator[Sketch]:
        """Training images of each class."""
        found = scene.materials.samples
        if found is None or not len(found.labels):
            return
        present = [int(label) for label in np.unique(found.labels)]
        images = in_unit(found.images)
        by_class = {label: images[found.labels == label] for label in present}
        if len(present) <= ROWS_UP_TO:
            names = {label: scene.class_name(label, 16) for label in present}
            margin = 0.15 + 0.082 * max(map(len, names.values()))
            side = (WIDTH - margin) / ACROSS - _GAP
            made, axes = page(0.1 + len(present) * (side + _GAP))
            for line, label in enumerate(present):
                top = 0.05 + line * (side + _GAP)
                axes.text(margin - 0.08, top + side / 2, names[label], ha="right", va="center")
                for column, image in enumerate(by_class[label][:ACROSS]):
                    place(axes, image, margin + column * (side + _GAP), top, side)
            most = max(min(ACROSS, len(part)) for part in by_class.values())
            caption = f"Up to {most} training images" if most > 1 else "One training image"
            caption += f" of each of the {counted(len(present), 'class', 'classes')}."
        else:
            shown = present[:CLASSES]
            across = ACROSS if len(shown) <= ACROSS * ACROSS_MANY // 2 else ACROSS_MANY
            side, high = WIDTH / across - 2 * _GAP, WIDTH / across + 0.14
            made, axes = page(0.05 + high * -(-len(shown) // across))
            for position, label in enumerate(shown):
                left, top = WIDTH / across * (position % across) + _GAP, 0.05 + high * (position // across)
                place(axes, by_class[label][0], left, top, side)
                name = scene.class_name(label, 96 // across)
                axes.text(left + side / 2, top + side + 0.02, name, ha="center", va="top", fontsize=8)
            caption = f"A training image of each of the {len(present)} classes."
            if len(shown) < len(present):
                caption = f"A training image of each of the first {len(shown)} of {len(present)} classes."
        height, width = images.shape[2:]
        caption += f" Images are {width} × {height} pixels, shown before augmentation."
        yield Sketch("sample-images", "Sample images", caption, caption, made)
