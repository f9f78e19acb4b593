"""What a report says in a few lines: as text of 80 columns, as markdown, and as HTML for notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from robbench.api.text import text_table, wrapped
from robbench.core.threat_model import NORMS, Norm, format_eps
from robbench.leaderboards.aggregates import Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.markdown import counted, escape, interval, listed, undivided
from robbench.leaderboards.readme import markdown_table
from robbench.leaderboards.sheet import Sheet, SheetLine, TableCell, numbers, texts, words
from robbench.leaderboards.table import is_smallest_change

if TYPE_CHECKING:
    from robbench.api.report import Report

ROWS, CLASSES = 20, 12
"""So many lines tables of rows and of classes show."""


def headline(report: Report) -> str:
    """Clean and worst-case robust accuracy of the best row, and whether the audit objects."""
    board, row = report.board, report.board.rows[0]
    first = f"best of {counted(len(board.rows), 'row')}: {row.label}: " if len(board.rows) > 1 else ""
    clean, worst = board.clean(row), board.robust(row)
    parts = [f"clean {_share(clean)}"] if clean else []
    if not row.rank:
        parts.append(f"not ranked: {row.unranked}")
    elif board.threat is None:
        parts.append("no attack was run")
    elif worst is not None:
        parts.append(f"worst case {board.threat} {_share(worst)}, n = {worst.share.n:,}")
    text = f"{first}{', '.join(parts)}; {verdict(board, row)}"
    return text[0].upper() + text[1:]


def verdict(board: Board, row: Row) -> str:
    """Whether the audit objects to a row, and what it cautions against."""
    if row.flags:
        return f"the audit objects: {listed(list(row.flags))}"
    if board.threat is None:
        return "this says nothing about robustness"
    text = "the audit has no objection" if row.audited else "not audited"
    if row.cautions:
        text += f"; {'caution' if len(row.cautions) == 1 else 'cautions'}: {listed(list(row.cautions))}"
    return text


def _share(found: Rates) -> str:
    between = interval(found.balanced)
    value, bracket, rest = between.partition(" (")
    return f"{value} %{bracket}{rest}"


# --- tables


def results(report: Report) -> Sheet:
    """The rows, best first; of a single row, its conditions and worst cases."""
    return _rows(report.board) if len(report.board.rows) > 1 else _conditions(report)


def _rows(board: Board) -> Sheet:
    worst = f"Worst case {board.threat}" if board.threat else ""
    lines = []
    for row in board.rows:
        cells = [TableCell(row.rank or "–"), TableCell(row.label), _percent(board.clean(row))]
        cells += [_percent(board.robust(row))] if worst else []
        chance = ["not above chance"] if row.above_chance is False else []
        audited = ["not audited"] if worst and row.rank and not row.audited else []
        cells.append(TableCell("; ".join([*row.flags, *audited, *chance, *([row.unranked] if row.unranked else [])])))
        lines.append(SheetLine(tuple(cells), row.label))
    headings = (*words("Rank", "Model"), *numbers("Clean", *([worst] if worst else [])), *words("Remarks"))
    return Sheet("Rows", headings, tuple(lines), label=1).without_empty()


def _conditions(report: Report) -> Sheet:
    board, row = report.board, report.board.rows[0]
    lines = []
    for spec in board.conditions:
        entry = row.cells[spec.label]
        if not is_smallest_change(spec) or entry.rates is None:
            lines.append(_condition(spec.label, entry.rates, "" if entry.rates else f"{entry.status}: {entry.reason}"))
    # As the conditions, from small to large.
    sizes = sorted(report.table.threats(), key=lambda threat: (NORMS.index(cast(Norm, threat.norm)), threat.eps))
    worst = ((threat.label, row.worst[threat.label]) for threat in sizes)
    lines += [_condition(f"worst case {label}", found, "") for label, found in worst if found]
    headings = (*words("Condition"), *numbers("Accuracy", "95 % interval", "n"), *words("Remarks"))
    return Sheet("Accuracy, averaged over classes", headings, tuple(lines)).without_empty()


def _condition(label: str, found: Rates | None, remark: str) -> SheetLine:
    figure = found.balanced if found else None
    value, _, between = interval(figure).partition(" (")
    size = TableCell.count(figure.n) if figure else TableCell("–")
    return SheetLine((*texts(label, value, between.rstrip(")") or "–"), size, TableCell(remark)))


def _percent(found: Rates | None) -> TableCell:
    return TableCell.share(found.balanced if found else None, ends=True)


def classes(report: Report) -> Sheet | None:
    """Clean and worst-case accuracy of the best row class by class, the lowest first where not all are shown."""
    board, row = report.board, report.board.rows[0]
    columns = {"Clean": board.clean(row)}
    if board.threat:
        columns[f"Worst case {board.threat}"] = board.robust(row)
    found = {name: rates for name, rates in columns.items() if rates}
    if not found:
        return None
    lowest = list(found.values())[-1].per_class
    order = [at for at in range(len(board.dataset.class_names)) if lowest[at] is not None]
    more = len(order) > CLASSES
    if more:
        order.sort(key=lambda at: figure.value if (figure := lowest[at]) else math.inf)
    lines = []
    for at in order:
        name = board.dataset.class_names[at]
        lines.append(SheetLine((TableCell(name), *(_of_class(rates, at) for rates in found.values()))))
    caption = f"Per class, {row.label}" if len(board.rows) > 1 else "Per class"
    return Sheet(f"{caption}, lowest first" if more else caption, (*words("Class"), *numbers(*found)), tuple(lines))


def _of_class(found: Rates, at: int) -> TableCell:
    return TableCell.share(found.per_class[at], ends=True)


def curves(report: Report) -> Iterator[Sheet]:
    """Robust accuracy of the best row over the size of the change."""
    row = report.board.rows[0]
    drawn = [*report.board.strength, *(one for one in report.board.sizes if one.label.startswith("any "))]
    for curve in {curve.norm: curve for curve in reversed(drawn)}.values():
        if row.label in curve.lines:
            yield _curve(report, row, curve)


def _curve(report: Report, row: Row, curve: Curve) -> Sheet:
    line = curve.lines[row.label]
    points = zip((0.0, *curve.radii), (line.clean, *line.points), strict=True)
    lines = tuple(SheetLine((TableCell(format_eps(eps), eps), _percent(found))) for eps, found in points)
    name = f", {row.label}" if len(report.rows) > 1 else ""
    return Sheet(f"Over eps, {curve.label}{name}", numbers("eps", "Accuracy"), lines)


def remarks(report: Report) -> Iterator[str]:
    """What the audit found, and what was not done."""
    board = report.board
    for row in board.rows:
        name = f"{row.label}: " if len(board.rows) > 1 else ""
        yield from (f"{name}{flag}: {text}" for flag, text in row.flags.items())
        if len(board.rows) == 1:
            yield from (f"caution: {flag}: {text}" for flag, text in row.cautions.items())
    for record in report.table.records():
        if record.status == "failed":
            yield f"failed: {record.spec.model.label} · {record.spec.condition.label}: {record.reason}"


def costs(report: Report) -> str:
    """What attacks spent, in a sentence."""
    spent = [record.costs for record in report.table.records()]
    forwards, backwards = (math.fsum(getattr(one, name) for one in spent) for name in ("forwards", "backwards"))
    return f"Attacks spent {forwards:,.0f} forward and {backwards:,.0f} backward passes."


# --- renderings


def summary(report: Report) -> str:
    """The report as text; see ``Report.summary``."""
    found = classes(report)
    tables = [(results(report), ROWS), *([(found, CLASSES)] if found else []), *((one, ROWS) for one in curves(report))]
    parts = [wrapped(headline(report)), *(text_table(made, most) for made, most in tables)]
    notes = [*remarks(report), costs(report)]
    return "\n\n".join([*parts, "\n".join(map(wrapped, notes))]) + "\n"


def markdown(report: Report) -> str:
    """The headline and the results in markdown; see ``Report.to_markdown``."""
    made = results(report)
    shown = Sheet(made.caption, made.headings, made.lines[:ROWS], made.label)
    more = len(made.lines) - ROWS
    rest = [f"*and {counted(more, 'more row')}*"] if more > 0 else []
    flags = [f"- {escape(text)}" for text in remarks(report)]
    parts = [f"**{escape(headline(report))}.**", markdown_table(shown), *rest, "\n".join(flags)]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(report: Report) -> str:
    """The markdown as HTML, without links, images or HTML of others."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).disable(["link", "image", "autolink", "html_inline"])
    return str(made.enable("table").render(undivided(markdown(report))))
