"""Where a model would stand on the boards of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robbench.api.loading import load
from robbench.api.report import Report
from robbench.core.errors import RequestError, StoreError
from robbench.leaderboards.markdown import interval


def places(report: Report, store: Path) -> Iterator[str]:
    """A line for each of a store's boards of the same test images on which a model would have a place.

    Args:
        report: Of a single model.
        store: Where the boards are.
    """
    for folder in sorted((store / "leaderboards").glob("*/")):
        if folder.name == report.name:
            continue
        try:
            other = load(folder)
        except (RequestError, StoreError):
            continue  # that a board of others is damaged is told where it is asked for
        line = place_on(report, other)
        if line is not None:
            yield line


def place_on(report: Report, other: Report) -> str | None:
    """Where the only model of a report would stand on another board, or None where the two cannot be compared."""
    own, theirs, ranked = report.board, other.board, other.board.ranked_by
    same = (own.dataset.fingerprint, own.dataset.counts["test"]) == (
        theirs.dataset.fingerprint,
        theirs.dataset.counts["test"],
    )
    worst = report.row().worst.get(ranked or "")
    if not same or worst is None or ranked is None:
        return None
    known = [row.worst[ranked] for row in theirs.sound]
    above = sum(found is not None and found.balanced.value > worst.balanced.value for found in known)
    if not known or known[0] is None:
        return None
    attacks = set(own.threats[ranked]) == set(theirs.threats[ranked])
    differs = "" if attacks else "; other attacks were run there"
    return (
        f"{other.name}: place {above + 1} of {len(known) + 1} at {ranked}, where the first has "
        f"{interval(known[0].balanced)} %{differs}"
    )
