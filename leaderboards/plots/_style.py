"""How figures look: one width, one palette, and text that is drawn as it was given."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.plots._words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

WIDTH = 7.2
"""Of every figure, in inches: 700 pixels of a page, a column of print; so 8 points are 8 points."""
DPI = 150

# Okabe and Ito's palette, distinguishable for color-blind readers.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#8A8A8A"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CLEAN, PERTURBED, ATTACKED = BLUE, SKY, VERMILLION
RULE = "#D9D9D9"

_MARK = "\x0b"
"""Where a line may end; names have none, as texts for figures stand on one line."""

_FALLBACKS = (
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic", "NanumGothic"),
    *("PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil"),
    *("Noto Sans Thai", "Noto Sans Ethiopic", "Nirmala UI", "Leelawadee UI", "FreeSans"),
)
_SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    # Ids inside the file are drawn at random unless they are salted.
    "svg.hashsalt": "robbench",
}


@dataclass(frozen=True)
class Fonts:
    """The fonts to draw with.

    Attributes:
        families: In the order in which a letter is looked for.
        letters: Code points that any of them has.
    """

    families: tuple[str, ...]
    letters: frozenset[int]

    @classmethod
    def installed(cls) -> Fonts:
        """The font that comes with matplotlib, and those of other scripts that this machine has."""
        _import_matplotlib()
        from matplotlib import font_manager

        there = set(font_manager.get_font_names())
        families = ("DejaVu Sans", *(name for name in _FALLBACKS if name in there))
        letters: set[int] = set()
        for name in families:
            font = font_manager.get_font(font_manager.findfont(name, fallback_to_default=False))
            letters.update(font.get_charmap())
        return cls(families, frozenset(letters))

    def has(self, text: str) -> bool:
        """Whether every letter can be drawn."""
        return all(ord(letter) in self.letters for letter in short(text, len(text)))

    def text(self, text: object, limit: int = 60) -> str:
        """Text for a figure: on one line, shortened, no formula in it; letters that no font has become ``□``."""
        line = "".join(letter if ord(letter) in self.letters else "□" for letter in short(text, limit))
        return line.replace("$", r"\$")

    def lines(self, text: object, width: int, limit: int = 2) -> str:
        """The same on a few lines of at most ``width`` letters."""
        tries = (short(text, letters) for letters in range(width * limit, 0, -1))
        broken = (_wrapped(line, width) for line in tries)
        parts = next(parts for parts in broken if len(parts) <= limit)
        return "\n".join(self.text(part, width) for part in parts)


def _import_matplotlib() -> None:
    """Import matplotlib whatever ``MPLBACKEND`` says: one that it does not know would end the import."""
    if "matplotlib" in sys.modules:
        return
    wanted = os.environ.pop("MPLBACKEND", "")
    try:
        import matplotlib as mpl
    finally:
        if wanted:
            os.environ["MPLBACKEND"] = wanted
    with contextlib.suppress(ValueError):
        mpl.rcParams.update({"backend": wanted} if wanted else {})


def _wrapped(line: str, width: int) -> list[str]:
    """Lines of at most ``width`` letters; words that are longer end theirs behind an underscore, a dot or a slash."""
    marked = re.sub(r"(?<=[_./])(?=\S)", _MARK, line) if max(map(len, line.split()), default=0) > width else line
    parts = textwrap.wrap(marked, width, break_on_hyphens=False, replace_whitespace=False)
    return [part.replace(_MARK, "") for part in parts]


@contextlib.contextmanager
def style(fonts: Fonts) -> Iterator[None]:
    """Draw in our style, whatever the user's own settings are; these are back afterwards."""
    import matplotlib as mpl

    settings: Any = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
    settings |= {**_SETTINGS, "font.family": list(fonts.families)}
    with mpl.rc_context(settings):
        yield


def sheet(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Sheet, NDArray[Any]]:
    """An empty figure of a height in inches, and its panels, shape ``(rows, columns)``."""
    from matplotlib.figure import Figure as Sheet

    made = Sheet(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, **options)


def page(height: float) -> tuple[Sheet, Axes]:
    """An empty figure to put images on, with one panel whose coordinates are inches from the upper left corner."""
    from matplotlib.figure import Figure as Sheet

    made = Sheet(figsize=(WIDTH, height), dpi=DPI)
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), autoscale_on=False)
    return made, axes


def in_unit(images: NDArray[Any]) -> NDArray[Any]:
    """Stored images, uint8 or floats in [0, 1], as floats in [0, 1]."""
    return images if images.dtype.kind == "f" else images / 255


def place(axes: Axes, image: NDArray[Any], x: float, y: float, side: float) -> None:
    """Put an image on a page.

    Args:
        axes: Of ``page``.
        image: Floats in [0, 1], shape ``(C, H, W)``; what is not RGB is shown in gray.
        x, y: Its upper left corner.
        side: Of the square that it is fitted into, in inches.
    """
    height, width = image.shape[1:]
    if len(image) != 3:
        image = np.repeat(image.mean(axis=0, keepdims=True), 3, axis=0)
    wide, high = side * width / max(height, width), side * height / max(height, width)
    left, top = x + (side - wide) / 2, y + (side - high) / 2
    # Small images keep their pixels; larger ones than there are dots to show them are averaged.
    smooth = max(height, width) > side * DPI
    axes.imshow(
        np.clip(image, 0, 1).transpose(1, 2, 0),
        extent=(left, left + wide, top + high, top),
        interpolation="antialiased" if smooth else "none",
        aspect="auto",
    )


def png(made: Sheet, photograph: bool = False) -> bytes:
    """A figure as PNG of at most 256 colors, the same bytes for the same figure."""
    lay_out(made)
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return with_palette(buffer.getvalue(), photograph)


def svg(made: Sheet) -> bytes:
    """A figure as SVG, the same bytes for the same figure."""
    lay_out(made)
    buffer = io.BytesIO()
    made.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def with_palette(data: bytes, photograph: bool = False) -> bytes:
    """A PNG with the 256 colors that suit it best, a quarter of the size.

    Charts have few more, but with fewer, lines of different colors can come to share one; photographs differ by 3 of
    256 levels on average.

    Args:
        data: The PNG.
        photograph: Whether to refine the colors by k-means, which takes seconds.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "P":
            return data
        plain = image.convert("RGB")
    buffer = io.BytesIO()
    # Dithering would scatter dots over flat colors.
    few = plain.quantize(256, kmeans=int(photograph), dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def lay_out(made: Sheet) -> None:
    """Settle the place of everything in a figure."""
    engine = made.get_layout_engine()
    if engine is not None:
        # Once is enough: left in place, it would be carried out twice again for each file.
        engine.execute(made)
        made.set_layout_engine(None)


def spans(figures: Sequence[Estimate | None]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentages and how far their intervals reach below and above, shapes ``(N,)`` and ``(2, N)``; NaN for None."""
    values = np.array([np.nan if figure is None else figure.value for figure in figures])
    low = [np.nan if figure is None or figure.low is None else figure.low for figure in figures]
    high = [np.nan if figure is None or figure.high is None else figure.high for figure in figures]
    reach = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
    return 100 * values, 100 * reach


def share_axis(axes: Axes, axis: str = "y", label: str = "", lowest: int = 0) -> None:
    """Let an axis go to 100 %: from 0, or from a round number at most ``lowest``."""
    from matplotlib.ticker import PercentFormatter

    along = axes.yaxis if axis == "y" else axes.xaxis
    along.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    step = 25 if lowest < 50 else 10
    start = min(step * (lowest // step), 90)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(start, 101)
    along.set_ticks(range(start, 101, step))
    axes.grid(axis="y" if axis == "y" else "x")
    if label:
        along.set_label_text(label)


def percent_limits(axes: Axes, axis: str, values: Sequence[float]) -> None:
    """Let an axis of percentages hold some values, from a round number to a round number."""
    from matplotlib.ticker import PercentFormatter

    low, high = max(0.0, min(values) - 2), min(100.0, max(values) + 2)
    step = 5 if high - low < 30 else 10
    ends = (step * np.floor(low / step), step * np.ceil(high / step))
    along = axes.yaxis if axis == "y" else axes.xaxis
    margin = 0.03 * (ends[1] - ends[0])
    (axes.set_ylim if axis == "y" else axes.set_xlim)(ends[0] - margin, ends[1] + margin)
    along.set_ticks(np.arange(ends[0], ends[1] + 1, step))
    along.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    axes.grid(True, axis="y" if axis == "y" else "x")
