"""Where a model would stand on the boards of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robbench.api.loading import load
from robbench.api.report import Report
from robbench.core.errors import RequestError, StoreError
from robbench.leaderboards.markdown import interval
from robbench.results.schema import DatasetSpec


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
    """Where the only model of a report would stand on another board.

    Returns:
        A line, or None where the two cannot be compared, or where the board has the model already.
    """
    own, theirs, ranked = report.board, other.board, other.board.ranked_by
    row = report.row()
    figure = row.worst.get(ranked) if ranked else own.clean(row)
    known = [found for one in theirs.sound if (found := theirs.ranking(one))]
    if not _same_data(own.dataset, theirs.dataset) or figure is None or not known:
        return None
    if _models(report) & _models(other):
        return None
    where = f"at {ranked}" if ranked else "by clean accuracy"
    if row.flags:
        return f"{other.name}: no place {where}, since the audit objects"
    above = sum(found.balanced.value > figure.balanced.value for found in known)
    judged, theirs_judged = (_conditions(one, ranked) for one in (report, other))
    attacks = "" if not ranked or judged == theirs_judged else "; other attacks were run there"
    same = _images(report, judged) == _images(other, theirs_judged)
    images = "" if same else f"; other images were {'attacked' if ranked else 'judged'} there"
    return (
        f"{other.name}: place {above + 1} of {len(known) + 1} {where}, where the first has "
        f"{interval(known[0].balanced)} %{attacks}{images}"
    )


def _models(report: Report) -> set[str]:
    return {record.spec.model_key for record, _ in report.cells}


def _same_data(own: DatasetSpec, other: DatasetSpec) -> bool:
    return (own.fingerprint, own.class_names, own.counts["test"]) == (
        other.fingerprint,
        other.class_names,
        other.counts["test"],
    )


def _conditions(report: Report, threat: str | None) -> set[str | None]:
    """Labels of the conditions that a rank is by: those of a threat model, or the clean one."""
    return set(report.board.threats[threat]) if threat else {report.board.clean_label}


def _images(report: Report, labels: set[str | None]) -> set[int]:
    """Ids of the images that conditions are about: those that all of them were applied to."""
    cells = [(record.spec.condition.label, outcome) for record, outcome in report.cells if outcome is not None]
    return set[int].intersection(*(set(outcome.ids.tolist()) for label, outcome in cells if label in labels))
