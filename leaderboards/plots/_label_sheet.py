"""Images whose label looks wrong, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from robbench.leaderboards.plots._style import WIDTH, Fonts, in_unit, page, place, png, style, svg

SHOWN = 24
"""How many of the worst are worth a look."""
_COLUMNS = 6
_IMAGE, _CAPTION, _GAP = 1.05, 0.45, 0.05  # inches


def label_sheet(images: Sequence[tuple[NDArray[Any], str, str]]) -> tuple[bytes, bytes]:
    """Images with what they are called and what a model calls them.

    Args:
        images: Each as stored, shape ``(C, H, W)``, with its label and the class suggested for it.

    Returns:
        The sheet as PNG and as SVG.
    """
    across, down = WIDTH / _COLUMNS, _IMAGE + _CAPTION
    fonts = Fonts.installed()
    with style(fonts):
        made, axes = page(-(-len(images) // _COLUMNS) * down)
        for rank, (image, *classes) in enumerate(images):
            x, y = rank % _COLUMNS * across, rank // _COLUMNS * down
            place(axes, in_unit(image), x + (across - _IMAGE) / 2, y + _GAP, _IMAGE)
            given, suggested = (fonts.text(name, 16) for name in classes)
            axes.text(x + across / 2, y + _IMAGE + 2 * _GAP, f"{given}\n→ {suggested}", size=8, ha="center", va="top")
        return png(made, photograph=True), svg(made)
