"""Whether results are good enough: what a build is stopped for."""

from __future__ import annotations

import math

from robbench.api.board_results import BoardResults, MissingResult
from robbench.api.comparison import Comparison
from robbench.api.report import Report
from robbench.core.errors import RequestError
from robbench.core.threat_model import LP_NORMS
from robbench.leaderboards.markdown import listed, reach, signed
from robbench.leaderboards.table import is_smallest_change
from robbench.results.schema import Measure


def read_threshold(text: str, where: str = "--fail-below") -> tuple[str, float]:
    """What is measured, and the least percentage that it has to reach.

    Args:
        text: As ``linf:8/255=40`` for the worst case of a threat model, ``clean=90``, or ``pgd[steps=20]@8/255=45``
            for a condition by its label.
        where: What a complaint names.

    Raises:
        RequestError: If it is of another form.
    """
    subject, equals, value = text.rpartition("=")
    try:
        least = float(value.strip().removesuffix("%"))
    except ValueError:
        least = math.nan
    if not equals or not subject.strip() or not 0 <= least <= 100:
        raise RequestError(f'"{text}" is no threshold; write linf:8/255=40 for at least 40 %, or clean=90', where)
    if 0 < least < 1:
        raise RequestError(f'"{text}" asks for less than 1 %; write {100 * least:g} for {100 * least:g} %', where)
    return subject.strip(), least


def check_threshold(results: BoardResults, threshold: str, where: str = "--fail-below") -> None:
    """Refuse a threshold of something that a board does not have, whether it is run already or only planned.

    Args:
        results: The board.
        threshold: See ``read_threshold``.
        where: What a complaint names.

    Raises:
        RequestError: If the threshold is malformed, nothing is attacked within its threat model, or its condition is
            not there, not supported, or looks for the smallest change.
    """
    subject, _ = read_threshold(threshold, where)
    norm, _, eps = subject.partition(":")
    if norm in LP_NORMS:
        results.threat(norm, eps.strip() or None, where)
        return
    if is_smallest_change(results.condition(subject, where)):
        raise RequestError(f"{subject} looks for the smallest change, which has no accuracy to compare with", where)
    records = results.table.records(condition=subject)
    if all(record.status == "unsupported" for record in records):
        raise RequestError(f"{subject} is not run: {records[0].reason}", where)


def below(report: Report, threshold: str, row: str | None = None) -> str | None:
    """Why a threshold is missed, in words, or None where it is reached.

    The figure itself counts, not an end of its interval. What has no result, and robustness that the audit objects to,
    misses every threshold.

    Args:
        report: The results.
        threshold: See ``read_threshold``.
        row: The model; may be left out where there is a single one.

    Raises:
        RequestError: If the threshold is malformed or names what the report does not have.

    Example:
        >>> robbench.api.thresholds.below(report, "linf:8/255=40")
        'linf:8/255: 38.0 % (33.2–42.9) is below 40 %'
    """
    subject, least = read_threshold(threshold)
    norm, _, eps = subject.partition(":")
    try:
        if norm in LP_NORMS:
            figure, attacked = report.worst_case(norm, eps.strip() or None, row), True
        else:
            figure = report.robust_accuracy(subject, row)
            attacked = report.condition(subject).kind in ("attack", "chain")
    except MissingResult as error:
        return str(error)
    flags = report.flags(row) if attacked else {}
    if flags:
        return f"{subject}: {_percent(figure)} is not to be trusted: the audit objects ({listed(list(flags))})"
    return f"{subject}: {_percent(figure)} is below {least:g} %" if 100 * figure.value < least else None


def dropped(comparison: Comparison, most: float) -> list[str]:
    """What the second model lost more of than it may, in words; nothing where it lost no more.

    The difference itself counts, not an end of its interval. A condition without a result, and audit flags that the
    first model does not have, are drops as well.

    Args:
        comparison: The first model is the one before, the second the one after.
        most: Percentage points by which accuracy may fall under a condition, in a worst case, or clean.
    """
    found = [f"{label}: no result: {reason}" for label, reason in comparison.missing.items()]
    fresh = [flag for flag in comparison.flags[1] if flag not in comparison.flags[0]]
    found += [f"the audit objects to what it did not object to before: {listed(fresh)}"] if fresh else []
    for one in comparison.conditions:
        if 100 * one.drop > most + 1e-9:
            ends = reach(one.difference.low, one.difference.high)
            found.append(f"{one.condition}: {signed(one.difference.value)} points ({ends}), more than {most:g} lost")
    return found


def _percent(figure: Measure) -> str:
    ends = "" if figure.low is None or figure.high is None else f" ({100 * figure.low:.1f}–{100 * figure.high:.1f})"
    return f"{100 * figure.value:.1f} %{ends}"
