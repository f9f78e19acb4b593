"""Tables of a report, as pandas has them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from robbench.api.board_results import BoardResults
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.threat_model import LP_NORMS
from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.results.schema import Record

if TYPE_CHECKING:
    import pandas as pd


def figures(report: BoardResults) -> pd.DataFrame:
    """Every figure, a line each; see ``Report.to_frame``."""
    import pandas as pd

    lines = [
        (row, record.spec.condition.label, record.spec.seed, name, *figure)
        for row in report.rows
        for record in report.table.records(row)
        for name, figure in record.metrics.items()
    ]
    lines += [
        (row, f"worst case {threat.label}", seed, name, *ends(figure))
        for row in report.rows
        for threat in report._threats
        for seed, found in report._worst_by_seed(row, threat).items()
        for name, figure in _named(found).items()
    ]
    frame = pd.DataFrame(lines, columns=["row", "condition", "seed", "figure", "value", "low", "high", "n"])
    frame.insert(0, "dataset", report.board.dataset.label)
    return frame


def plain_data(report: BoardResults) -> dict[str, Any]:
    """A report as plain data, as ``robbench evaluate --json`` prints it: the best row, then every figure."""
    board, row = report.board, report.board.rows[0]
    clean, worst = board.clean(row), board.robust(row)
    return {
        "board": report.name,
        "row": row.label,
        "clean": _plain(clean),
        "worst_case": None if worst is None else {"threat": board.threat, **(_plain(worst) or {})},
        "audited": row.audited,
        "flags": dict(row.flags),
        "cautions": dict(row.cautions),
        "figures": json.loads(figures(report).to_json(orient="records")),
    }


def _plain(rates: Rates | None) -> dict[str, float | None] | None:
    if rates is None:
        return None
    value, low, high, n = ends(rates.balanced)
    return {"value": value, "low": low, "high": high, "n": n}


def curve(report: BoardResults, norm: str | None) -> pd.DataFrame:
    """Robust accuracy over the size of the change; see ``Report.curve``."""
    import pandas as pd

    board = report.board
    wanted = norm or (next(iter(report._threats)).norm if report._threats else LP_NORMS[0])
    untargeted = [one for one in board.sizes if one.label.startswith("any ")]
    curves = {one.norm: one for one in (*reversed(untargeted), *reversed(board.strength))}
    if wanted not in LP_NORMS:
        raise RequestError(f'there is no norm "{wanted}"; {did_you_mean(str(wanted), LP_NORMS)}', "norm")
    if wanted not in curves:
        there = f"there are curves in {', '.join(sorted(curves))}" if curves else "there is no curve in any norm"
        raise RequestError(f"no attack was run at two sizes in {wanted}; {there}", "norm")
    found = curves[wanted]
    lines = [
        (label, size, *ends(rates.balanced))
        for label in report.rows
        if (line := found.lines.get(label))
        for size, rates in zip((0.0, *found.radii), (line.clean, *line.points), strict=True)
    ]
    return pd.DataFrame(lines, columns=["row", "eps", "accuracy", "low", "high", "n"])


def costs(report: BoardResults) -> pd.DataFrame:
    """What was spent; see ``Report.costs``."""
    import pandas as pd

    lines: list[tuple[object, ...]] = []
    for row in report.board.rows:
        for seed, part in row.training.items():
            lines.append((row.label, "training", int(seed), part.forwards, part.backwards, math.nan))
        lines += [_cost(record) for record in report.table.records(row.label) if record.status == "done"]
    return pd.DataFrame(lines, columns=["row", "condition", "seed", "forwards", "backwards", "seconds"])


def ends(figure: Estimate) -> tuple[float, float | None, float | None, int]:
    """A figure with the ends of its interval and its number of samples."""
    return figure.value, figure.low, figure.high, figure.n


def _named(found: Rates) -> dict[str, Estimate]:
    classes = {f"robust_accuracy/{label}": figure for label, figure in enumerate(found.per_class) if figure}
    return {
        "robust_accuracy": found.share,
        "balanced_robust_accuracy": found.balanced,
        "worst_class_robust_accuracy": found.worst_class,
        **classes,
    }


def _cost(record: Record) -> tuple[object, ...]:
    spec, costs = record.spec, record.costs
    seconds = record.timings.get("seconds", math.nan)
    return spec.model.label, spec.condition.label, spec.seed, costs.forwards, costs.backwards, seconds
