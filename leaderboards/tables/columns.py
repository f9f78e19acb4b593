"""What each condition leaves of each row."""

from __future__ import annotations

from robbench.core.threat_model import format_eps
from robbench.evaluation.metrics.draws import DRAWS
from robbench.leaderboards.aggregates import Figure
from robbench.leaderboards.board import Board
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.markdown import NONE, TextTable, escape, interval, number, percent
from robbench.leaderboards.tables.parts import Choose, balanced, extent, of, share, shown
from robbench.results.schema import ConditionSpec


def conditions(board: Board, choose: Choose) -> TextTable:
    """Every condition of every row; chains with the plain accuracy after them beside the robust one."""
    headers = ["Model"]
    columns = [condition for condition in board.conditions if not for_some(board, condition)]
    for condition in columns:
        sizes = {rates.share.n for row in board.rows if (rates := row.cells[condition.label].rates)}
        subset = f" (n = {extent(sizes)})" if sizes and (condition.sample is not None or condition.target) else ""
        headers.append(escape(condition.label) + subset)
        if condition.kind == "chain":
            headers.append(f"{escape(condition.label)}, plain")
    lines = []
    for row in board.rows:
        line = [escape(row.label)]
        for condition in columns:
            entry = row.cells[condition.label]
            line.append(shown(entry, choose))
            if condition.kind == "chain":
                line.append(percent(of(entry.accuracy, choose)))
        lines.append(line)
    return TextTable(headers, lines)


def for_some(board: Board, condition: ConditionSpec) -> bool:
    """Whether the condition towards a target was asked of some rows only; ``aimed`` shows it."""
    return condition.target is not None and any(not row.cells[condition.label].keys for row in board.rows)


def draws(board: Board) -> TextTable:
    """How natural perturbations vary over draws, and the worst of several."""
    names = ("draws_mean", "draws_std", "draws_min", "draws_max", *(f"worst_of_{n}" for n in DRAWS))
    found = [
        [escape(row.label), escape(condition.label), *(percent(details.get(name)) for name in names)]
        for condition in board.conditions
        if condition.kind == "natural" and condition.draws > 1
        for row in board.rows
        if (details := row.cells[condition.label].details)
    ]
    headers = ["Mean", "Std", "Lowest", "Highest", *(f"Worst of {n}" for n in DRAWS)]
    return TextTable(["Model", "Condition", *headers], found, left=(0, 1)).without_empty()


def aimed(board: Board) -> TextTable:
    """Attacks towards targets, and attacks that look for a small change: how often they succeed and what it takes."""
    lines = []
    for condition in board.conditions:
        if not (condition.target or any(not stage.bounded and stage.norm != "none" for stage in condition.stages)):
            continue
        for row in board.rows:
            details = row.cells[condition.label].details
            if details:
                names = ("success_rate", "targeted_success", "targeted_success_mean")
                sizes = [details.get(f"{norm}_median_success") for norm in ("linf", "l2", "l1")]
                lines.append(
                    [
                        escape(row.label),
                        escape(condition.label),
                        *(interval(details.get(name)) for name in names),
                        *(number(size.value) if size else NONE for size in sizes),
                    ]
                )
    headers = ["Model", "Condition", "Wrong", "Target reached", "Mean over targets"]
    return TextTable([*headers, "Median Linf", "Median L2", "Median L1"], lines, left=(0, 1)).without_empty()


def withstood(board: Board, curve: Curve, median: bool) -> TextTable:
    """One curve: a row per model, a column per eps or size; with the median size at success where that is asked for."""
    choose = balanced if board.imbalanced else share
    lines = []
    for row in board.rows:
        line = curve.lines.get(row.label)
        if line is not None:
            points = [percent(choose(point)) for point in line.points]
            details = row.cells[curve.conditions[0]].details or {}
            size = details.get(f"{curve.norm}_median_success")
            lines.append(
                [
                    escape(row.label),
                    *points,
                    percent(choose(line.area)),
                    *[number(size.value) if size else NONE] * median,
                    str(line.area.share.n),
                ]
            )
    radii = [f"{curve.norm.capitalize()} ≤ {format_eps(radius)}" for radius in curve.radii]
    return TextTable(["Model", *radii, "Area", *["Median at success"] * median, "n"], lines)


def further(board: Board) -> TextTable:
    """Figures of plugins' metrics, a column each."""
    entries = [entry for row in board.rows for entry in row.cells.values()]
    names = list(dict.fromkeys(name for entry in entries for name in entry.further or ()))
    lines = [
        [escape(row.label), escape(label), *(_measured((entry.further or {}).get(name)) for name in names)]
        for row in board.rows
        for label, entry in row.cells.items()
        if entry.further
    ]
    return TextTable(["Model", "Condition", *map(escape, names)], lines, left=(0, 1))


def _measured(figure: Figure | None) -> str:
    if figure is None:
        return NONE
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} ({number(figure.low)}–{number(figure.high)})"


def rounding(board: Board) -> TextTable:
    """What rounding attacked images to 8 bits changes, in points, where it changes anything by a tenth of a point."""
    lines = []
    for condition in board.conditions:
        for row in board.rows:
            entry = row.cells[condition.label]
            rounded = (entry.details or {}).get("robust_accuracy_8bit")
            if rounded and entry.rates and abs(rounded.value - entry.rates.share.value) >= 0.001:
                lines.append([escape(row.label), escape(condition.label), percent(entry.rates.share), percent(rounded)])
    return TextTable(["Model", "Condition", "As attacked", "After rounding"], lines, left=(0, 1))


def corruptions(board: Board) -> TextTable:
    """The suite of corruptions, row by row: means, errors relative to the baseline, and every kind."""
    kinds = list(dict.fromkeys(kind for figures in board.corrupted.values() for kind, _ in figures.rates))
    lines = []
    for label, figures in board.corrupted.items():
        errors = (figures.mce, figures.relative_mce)
        lines.append(
            [
                escape(label),
                _percent(figures.mean),
                _percent(figures.mean_all),
                *(NONE if error is None else f"{100 * error:.1f}" for error in errors),
                *(_percent(figures.kind(kind)) for kind in kinds),
            ]
        )
    headers = ["Model", "Mean of 15", "Mean of 19", "mCE", "Relative mCE", *kinds]
    return TextTable(headers, lines).without_empty()


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"
