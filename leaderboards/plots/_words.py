"""Words and numbers in captions."""

from __future__ import annotations

from robbench.core.safe_text import visible


def short(text: object, limit: int = 60) -> str:
    """Visible text on one line, with an ellipsis in the middle where it exceeds the limit."""
    line = visible(" ".join(str(text).split()))
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}…{line[len(line) - tail :]}"


def pct(share: float) -> str:
    """``0.4712`` as ``47 %``, with a decimal where it would otherwise read as none or all of it."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"
