"""Numbers and escapes in markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from robbench.core.safe_text import visible
from robbench.leaderboards.aggregates import Estimate

NONE = "–"

# An underscore inside a word is no emphasis.
# Before a space or a digit, "<" and "&" begin no HTML; square brackets make links only together with others.
_SPECIAL = r"[\\`*|~#$]|^[>\[]|\[(?=\^)|\](?=[(\[:])|[<&](?![ \d])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
# What would begin a list or draw a line, at the beginning of a line.
_MARK = re.compile(r"^(?:\d*[.)+-](?= |$)|[=-](?=[ =-]|$))")
# What code hosts make links of without being asked.
_ADDRESS = re.compile(r"(?<=[A-Za-z0-9]):(?=//)|(?<=www)\.", re.IGNORECASE)
_MAIL = re.compile(r"(?<=@)(?=[\w\\.-]*\.[\w\\.-]*[A-Za-z])")
_DIVIDED = "<!-- -->"


def escape(text: object, brackets: bool = False) -> str:
    """Text of whoever wrote it that markdown shows as it is, on one line, inside tables too.

    Nothing in it becomes a link, an image, HTML, emphasis, code, mathematics or the beginning of a block. Unsafe
    characters are made visible; see ``robbench.core.safe_text``.

    Args:
        text: The text.
        brackets: Whether every square bracket is escaped, as inside of a link, which one would end.
    """
    line = re.sub(rf"{_SPECIAL}{r'|[][]' if brackets else ''}", r"\\\g<0>", visible(" ".join(str(text).split())))
    line = _ADDRESS.sub(r"\\\g<0>", _MARK.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line))
    # No escape prevents that an address of electronic mail becomes a link.
    return _MAIL.sub(_DIVIDED, line)


def undivided(markdown: str) -> str:
    """Markdown of ``escape`` without what it divides addresses by, for readers that make no links of them."""
    return markdown.replace(f"@{_DIVIDED}", "@")


def code(text: object) -> str:
    """The same as code, where nothing is escaped."""
    return "`" + visible(" ".join(str(text).split())).replace("`", "'") + "`"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each on one line; empty lines divide them."""
    return [line for part in text.split("\n\n") if (line := " ".join(part.split()))]


def percent(figure: Estimate | None) -> str:
    """``71.3``, or a dash."""
    return f"{100 * figure.value:.1f}" if figure else NONE


def interval(figure: Estimate | None) -> str:
    """``71.3 (67.2–75.0)``, or a dash."""
    between = ends(figure) if figure else ""
    return f"{percent(figure)} ({between})" if between else percent(figure)


def ends(figure: Estimate) -> str:
    """``67.2–75.0``, the ends of an interval in percent; nothing where there is none."""
    return "" if figure.low is None or figure.high is None else f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"


def reach(low: float | None, high: float | None) -> str:
    """``-0.2 to +6.4`` percent points."""
    return f"{signed(low or 0.0)} to {signed(high or 0.0)}"


def signed(difference: float) -> str:
    """``+3.1`` percent points."""
    # Adding 0 turns a negative zero, which would be shown as -0.0, into a positive one.
    return f"{round(100 * difference, 1) + 0:+.1f}"


def probability(p: float | None) -> str:
    """A p value of two digits, never rounded to 0."""
    if p is None:
        return NONE
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def number(value: float) -> str:
    """A number of three significant digits, without an exponent where it is of ordinary size."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def abbreviated(value: float) -> str:
    """``1.2 M``, ``29 M``: a count in thousands, millions, billions (G) or trillions (T); a dash for 0."""
    for unit, size in {" T": 1e12, " G": 1e9, " M": 1e6, " K": 1e3}.items():
        # From where fewer thousands would be shown as a thousand.
        if value >= 0.9995 * size:
            return f"{value / size:.{1 if value < 9.95 * size else 0}f}{unit}"
    return f"{value:.0f}" if value else NONE


def value_list(values: Iterable[object]) -> str:
    """Values with commas between them, or a dash for none."""
    return ", ".join(str(value) for value in values) or NONE


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 row``, ``2 rows``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
