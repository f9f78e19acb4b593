"""Robustness under each condition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from robbench.core.corruption_kinds import EXTRA, MAIN
from robbench.core.threat_model import format_eps
from robbench.evaluation.metrics.draws import DRAWS
from robbench.leaderboards.aggregates import Estimate
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.entries import Entry
from robbench.leaderboards.markdown import NONE, value_list
from robbench.leaderboards.sheet import (
    Detail,
    Evidence,
    Heading,
    Sheet,
    SheetLine,
    TableCell,
    by_row,
    numbers,
    texts,
    word,
    words,
)
from robbench.leaderboards.table import is_smallest_change
from robbench.leaderboards.tables.parts import (
    MODEL,
    Choose,
    Column,
    after,
    balanced,
    beside,
    extent,
    samples,
    shown,
    single,
    union_name,
    usual,
)
from robbench.results.schema import CertificateSpec, ConditionSpec, Reference, StageSpec

RECALL = "recall/"


def conditions(board: Board, labels: Collection[str], choose: Choose, caption: str) -> Sheet:
    """Some conditions of every row; chains with the plain accuracy after them beside the robust one.

    Attacks that look for the smallest change are left out: without its size, their success says nothing.
    """
    columns: list[Column] = [MODEL]
    for condition in board.conditions:
        label = condition.label
        if label not in labels or is_smallest_change(condition):
            continue
        below = samples(row.cells[label].rates for row in board.rows) if len(columns) == 1 else ""
        columns.append((Heading(label, below=below), shown(label, choose)))
        if condition.kind == "chain":
            columns.append((Heading(f"{label}, plain"), after(label, choose)))
    return by_row(caption, columns, board.rows if len(columns) > 1 else ())


def specifications(board: Board) -> Sheet:
    """What each condition is, exactly, what it costs, and what it leaves of the best row and of the undefended one.

    The last on the images of the ranking, where the condition was run on all of them.
    """
    named = {"Best": next(iter(board.sound), None), "Best undefended": board.undefended}
    compared = {name: row for name, row in named.items() if row}
    lines = []
    for condition in board.conditions:
        label = condition.label
        stages = "; then ".join(_stage(stage, condition.kind == "attack") for stage in condition.stages)
        definition = f"{union_name(condition)}, per image" if condition.union else stages or "clean images"
        if condition.certificate:
            definition = _proof(condition.certificate)
        evidence = Evidence.of(f"{label}: all rows", [(row.label, label) for row in board.rows])
        entries = [row.cells[label] for row in board.rows]
        sizes = {entry.rates.share.n for entry in entries if entry.rates}
        cells = (
            *texts(label, condition.kind, definition, condition.target or NONE),
            TableCell(str(condition.draws), condition.draws) if condition.kind == "natural" else TableCell(NONE),
            TableCell(extent(sizes), min(sizes), evidence=evidence) if sizes else TableCell(NONE),
            *(TableCell.quantity(_mean(entries, name), evidence) for name in ("forwards", "backwards")),
            *(
                TableCell(NONE) if is_smallest_change(condition) else beside(board, label, balanced)(row)
                for row in compared.values()
            ),
        )
        lines.append(SheetLine(cells))
    headings = (
        *words("Condition"),
        Heading("Kind", number=False, detail=Detail.PAGE),
        *words("Definition"),
        Heading("Target", number=False, detail=Detail.PAGE),
        Heading("Draws", detail=Detail.PAGE),
        *numbers("n", "Forward passes", "Backward passes"),
        *(Heading(name, below=row.label) for name, row in compared.items()),
    )
    return Sheet("Conditions", headings, tuple(lines))


def _mean(entries: list[Entry], name: str) -> float | None:
    found = [figure.value for entry in entries if (figure := entry.detail(name))]
    return fmean(found) if found else None


def _stage(stage: StageSpec, adversarial: bool) -> str:
    limit = f"{stage.norm.capitalize()}, minimum norm"
    if stage.norm == "none":
        limit = "chosen by the model's answers" if adversarial else "natural perturbation"
    if stage.eps is not None:
        limit = f"{stage.norm.capitalize()} ≤ {format_eps(stage.eps)}"
    traits = ["uses gradients"] * stage.white_box + ["toolbox: global random state, fixed batches"] * stage.global_state
    traits += [f"plugin {stage.source}"] if stage.source else []
    name = f"{stage.name} v{stage.version}" + (f" ({parameters(stage.parameters)})" if stage.parameters else "")
    return "; ".join([name, limit, *traits])


def _proof(proof: CertificateSpec) -> str:
    name = f"{proof.name} v{proof.version}" + (f" ({parameters(proof.parameters)})" if proof.parameters else "")
    plugin = [f"plugin {proof.source}"] if proof.source else []
    return "; ".join([f"proof by {name}", f"{proof.norm.capitalize()} ≤ {format_eps(proof.eps)}", *plugin])


def parameters(values: Mapping[str, object]) -> str:
    """``steps = 20, step = 0.01``."""
    return value_list(f"{name} = {value}" for name, value in sorted(values.items()))


def curve(board: Board, drawn: Curve, *, median: bool) -> Sheet:
    """Robust accuracy over the size of the change; with the median size at success where that is asked for."""
    choose = usual(board)
    radii = [f"{drawn.norm.capitalize()} ≤ {format_eps(radius)}" for radius in drawn.radii]
    lines = []
    for row in board.rows:
        line = drawn.lines.get(row.label)
        if line is None:
            continue
        figures = {"clean": choose(line.clean)}
        figures |= dict(zip(radii, map(choose, line.points), strict=True)) | {"area": choose(line.area)}
        places = [(row.label, condition) for condition in drawn.conditions]
        evidence = Evidence.of(f"{row.label}: robust accuracy over size, {drawn.label}", places, figures)
        cells = (
            TableCell(row.label),
            *(TableCell.share(figure, evidence) for figure in figures.values()),
            *[TableCell.quantity(line.median, evidence)] * median,
        )
        lines.append(SheetLine(cells, row.label))
    n = samples(line.area for line in drawn.lines.values())
    headings = (*words("Model"), Heading("Clean", below=n), *numbers(*radii, "Area", *["Median change"] * median))
    return Sheet(f"Robust accuracy over size: {drawn.label}", headings, tuple(lines))


def draws(board: Board) -> Sheet:
    """How natural perturbations vary over draws, and the worst of several."""
    names = ("draws_mean", "draws_std", "draws_min", "draws_max", *(f"worst_of_{n}" for n in DRAWS))

    def cells(condition: ConditionSpec, entry: Entry) -> list[TableCell]:
        repeated = entry.details and condition.kind == "natural" and condition.draws > 1
        return [TableCell.share(entry.detail(name)) for name in names] if repeated else []

    headings = ["Mean", "Std", "Lowest", "Highest", *(f"Worst of {n}" for n in DRAWS)]
    return _by_place(board, "Natural perturbations, draw by draw", headings, cells)


def aimed(board: Board) -> Sheet:
    """Targeted attacks: how often they succeed and what it takes."""

    def cells(condition: ConditionSpec, entry: Entry) -> list[TableCell]:
        if not entry.details or not condition.target:
            return []
        rates = ("success_rate", "targeted_success", "targeted_success_mean")
        sizes = (f"{norm}_median_success" for norm in ("linf", "l2", "l1"))
        shares = [TableCell.share(entry.detail(name), ends=True) for name in rates]
        return shares + [TableCell.quantity(entry.detail(name)) for name in sizes]

    headings = ("Misclassified", "Target reached", "Mean over targets", "Median Linf", "Median L2", "Median L1")
    return _by_place(board, "Targeted attacks", headings, cells)


def further(board: Board) -> Sheet:
    """Numbers of all other registered metrics, a column each."""
    entries = [entry for row in board.rows for entry in row.cells.values()]
    names = list(dict.fromkeys(name for entry in entries for name in entry.further or ()))

    def cells(condition: ConditionSpec, entry: Entry) -> list[TableCell]:
        found = entry.further or {}
        return [TableCell.quantity(found.get(name)) for name in names] if found else []

    return _by_place(board, "Further metrics", names, cells)


def rounding(board: Board) -> Sheet:
    """What rounding attacked images to 8 bits changes, where it changes anything by a tenth of a point."""

    def cells(condition: ConditionSpec, entry: Entry) -> list[TableCell]:
        rounded = entry.detail("robust_accuracy_8bit")
        if not rounded or not entry.rates or abs(rounded.value - entry.rates.share.value) < 0.001:
            return []
        return [TableCell.share(entry.rates.share), TableCell.share(rounded)]

    return _by_place(board, "Rounding to 8 bits", ("As attacked", "After rounding"), cells)


def _by_place(
    board: Board, caption: str, headings: Sequence[str], cells: Callable[[ConditionSpec, Entry], list[TableCell]]
) -> Sheet:
    """A line for each condition and row that has cells."""
    lines = [
        _line(row, condition.label, made)
        for condition in board.conditions
        for row in board.rows
        if (made := cells(condition, row.cells[condition.label]))
    ]
    return Sheet(caption, (*words("Model", "Condition"), *numbers(*headings)), tuple(lines)).without_empty()


def compared(board: Board, reference: Reference) -> Estimate | None:
    """The board's own number of the kind of a published one, None where there is none."""
    entry = next((row.cells.get(reference.condition) for row in board.rows if row.label == reference.row), None)
    rates = (entry.accuracy or entry.rates) if entry else None
    if entry is None or rates is None or reference.figure == "accuracy":
        return rates.share if rates else None
    if reference.figure.startswith(RECALL):
        label, names = reference.figure.removeprefix(RECALL), board.dataset.class_names
        return rates.per_class[names.index(label)] if label in names else None
    # Macro F1 after a chain is by the rule of robust accuracy, published figures are by that of plain accuracy.
    return None if entry.accuracy else entry.detail(reference.figure)


def references(board: Board, found: Sequence[Reference]) -> Sheet:
    """A line per row and condition, ``theirs → ours`` in a column per kind of number."""
    names = list(dict.fromkeys(reference.figure for reference in found))
    rows = {row.label: row for row in board.rows}
    cells: dict[tuple[str, str], dict[str, TableCell]] = {}
    remarks: dict[tuple[str, str], dict[str, None]] = {}
    for there in found:
        place, ours = (there.row, there.condition), TableCell.share(compared(board, there), ends=True)
        text = f"{100 * there.value:.1f} → {ours.text}"
        cells.setdefault(place, {})[there.figure] = replace(ours, text=text)
        remarks.setdefault(place, {}).update({there.remark: None} if there.remark else {})
    lines = [
        _line(
            rows.get(place[0], place[0]),
            place[1],
            [*(by_name.get(name, TableCell(NONE)) for name in names), TableCell("; ".join(remarks[place]) or NONE)],
        )
        for place, by_name in cells.items()
    ]
    headings = [name.replace(RECALL, "recall of ").replace("macro_f1", "macro F1") for name in names]
    made = numbers(*(name[:1].upper() + name[1:] for name in headings))
    columns = (*words("Model", "Condition"), *made, word("Remark"))
    return Sheet("Published → ours", columns, tuple(lines)).without_empty()


def _line(row: Row | str, condition: str, cells: Sequence[TableCell]) -> SheetLine:
    """A line that begins with a row and a condition, on whose records its numbers rest."""
    label = row if isinstance(row, str) else row.label
    evidence = None if isinstance(row, str) or condition not in row.cells else single(row, condition)
    made = (cell if cell.sort is None else replace(cell, evidence=evidence) for cell in cells)
    return SheetLine((*texts(label, condition), *made), None if isinstance(row, str) else label)


def corruptions(board: Board) -> Sheet:
    """The suite of corruptions, row by row: means, errors relative to the baseline, and every kind."""
    baseline = next(iter(board.corrupted), "")
    everything = (*MAIN, *EXTRA)
    lines = []
    kinds: list[str] = []
    for label, found in board.corrupted.items():
        suite = found.conditions
        kinds = [kind for kind in everything if any(place[0] == kind for place in suite)]
        means = (
            ("Mean of 15", found.mean, MAIN, (label,)),
            ("Mean of 19", found.mean_all, everything, (label,)),
            ("mCE", found.mce, MAIN, (label, baseline)),
            ("Relative mCE", found.relative_mce, MAIN, (label, baseline)),
        )
        cells = [TableCell(label)]
        for name, value, chosen, rows in means:
            used = [(row, suite[place]) for row in dict.fromkeys(rows) for place in suite if place[0] in chosen]
            cells.append(TableCell.percentage(value, Evidence.of(f"{label}: {name}", used)))
        for kind in kinds:
            used = [(label, condition) for place, condition in suite.items() if place[0] == kind]
            by_severity = {
                f"severity {severity}": rates.share for (name, severity), rates in found.rates.items() if name == kind
            }
            cells.append(TableCell.percentage(found.kind(kind), Evidence.of(f"{label}: {kind}", used, by_severity)))
        lines.append(SheetLine(tuple(cells), label))
    headings = (
        *words("Model"),
        *numbers("Mean of 15", "Mean of 19"),
        *(Heading(name, rising=True) for name in ("mCE", "Relative mCE")),
        *(Heading(kind, detail=Detail.PAGE) for kind in kinds),
    )
    return Sheet("Common corruptions", headings, tuple(lines)).without_empty()


def corruption_figures(board: Board) -> Sheet:
    """One line per row, kind of corruption and severity."""
    lines = [
        SheetLine((*texts(label, kind, str(severity)), TableCell.share(rates.share)), label)
        for label, found in board.corrupted.items()
        for (kind, severity), rates in found.rates.items()
    ]
    return Sheet("Corruptions", (*words("model", "kind", "severity"), Heading("value")), tuple(lines))
