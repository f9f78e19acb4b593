"""Labels beside points, where they hide neither one another nor a point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box: TypeAlias = tuple[float, float, float, float]
"""Left, lower, right and upper edge, in points."""


_SIZE = 8.0
"""Of the font, in points."""


@dataclass(frozen=True)
class PointLabel:
    """What stands beside a point.

    Attributes:
        text: On one line.
        x, y: The point, in the units of the axes.
        color: Of the text.
        radius: Of the point's mark, in points.
    """

    text: str
    x: float
    y: float
    color: str
    radius: float = 3


def write_labels(
    axes: Axes,
    labels: Iterable[PointLabel],
    taken: Iterable[Box] = (),
    lines: Sequence[Box] = (),
    far: bool = False,
) -> list[PointLabel]:
    """Write each label on whichever side of its point nothing is yet; those that fit nowhere are left out.

    Args:
        axes: A panel whose place in the figure is settled.
        labels: The first have the choice.
        taken: What must not be written on, from ``mark_box``.
        lines: What is written on only where there is no other place, and is interrupted there.
        far: Whether a label may stand away from its point, joined to it by a line.

    Returns:
        The labels that were written.
    """
    from matplotlib.patheffects import withStroke

    left, low, right, top = (edge / _scale(axes) for edge in axes.get_window_extent().extents)
    occupied, written = list(taken), []
    for label in labels:
        x, y = _place(axes, label.x, label.y)
        start, base, wide, high = _bounds(axes, label.text, _SIZE)
        offsets = list(_offsets(wide, high, label.radius, far))
        for avoided, (aside, up, away) in [(avoided, at) for avoided in (lines, ()) for at in offsets]:
            box = (x + aside, y + up, x + aside + wide, y + up + high)
            inside = left < box[0] and box[2] < right + 4 and low < box[1] and box[3] < top + 8
            if inside and not any(_overlap(box, other) for other in (*occupied, *avoided)):
                occupied.append(box)
                written.append(label)
                # From that end of the text which is next to the point.
                end = (0.0 if aside > 0 else 1.0 if aside + wide < 0 else -aside / wide, 0.5)
                line: dict[str, Any] = {"relpos": end, "arrowstyle": "-", "color": label.color, "lw": 0.5}
                line |= {"shrinkA": 0, "shrinkB": label.radius}
                note = axes.annotate(
                    label.text,
                    (label.x, label.y),
                    (aside - start, up - base),
                    textcoords="offset points",
                    fontsize=_SIZE,
                    color=label.color,
                    zorder=5,
                    arrowprops=line if away else None,
                )
                note.set_path_effects([withStroke(linewidth=2, foreground="white")])
                if lines:
                    note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.9})
                note.set_in_layout(False)
                break
    return written


def mark_box(axes: Axes, x: float, y: float, radius: float = 3) -> Box:
    """The room that a point's mark takes."""
    across, up = _place(axes, x, y)
    return (across - radius, up - radius, across + radius, up + radius)


def span_box(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Box:
    """The room that a level or upright line between two points takes."""
    (left, low), (right, top) = _place(axes, *start), _place(axes, *end)
    return (min(left, right) - 1, min(low, top) - 1, max(left, right) + 1, max(low, top) + 1)


def _bounds(axes: Axes, text: str, fontsize: float) -> tuple[float, float, float, float]:
    """The box of a text: its left and lower edge from where the text is put, its width and height, in points."""
    from matplotlib.transforms import IdentityTransform

    probe = axes.text(0, 0, text, fontsize=fontsize, transform=IdentityTransform())
    start, base, wide, high = (side / _scale(axes) for side in probe.get_window_extent().bounds)
    probe.remove()
    return start, base, wide, high


def _offsets(wide: float, high: float, radius: float, far: bool) -> Iterator[tuple[float, float, bool]]:
    """Where the lower left corner of a label may lie from its point, the best places first; and whether that is far."""
    for gap in (2, 8, 16, 26, 38, 52, 70) if far else (2,):
        aside, up = radius + gap, 0.7 * radius + gap - 1
        places = [(aside, -high / 2), (-aside - wide, -high / 2)]
        for x in (aside - 2, -aside + 2 - wide, -wide / 2, -wide / 4, -3 * wide / 4):
            places += [(x, up), (x, -up - high)]
        yield from ((x, y, gap > 2) for x, y in places)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scale(axes: Axes) -> float:
    return axes.figure.dpi / 72


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y)) / _scale(axes)
    return float(across), float(up)
