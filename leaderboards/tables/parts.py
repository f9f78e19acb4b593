"""What the tables share: which number of a set of rates they show, and what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from robbench.leaderboards.aggregates import Estimate, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.markdown import NONE, listed
from robbench.leaderboards.sheet import Detail, Evidence, Heading, TableCell, word
from robbench.leaderboards.table import ThreatModel
from robbench.results.schema import MANY_CLASSES, ConditionSpec

Choose: TypeAlias = Callable[[Rates], Estimate]
Column: TypeAlias = tuple[Heading, Callable[[Row], TableCell]]

MODEL: Column = (word("Model"), lambda row: TableCell(row.label))


def model_size(detail: Detail = Detail.README) -> tuple[Column, ...]:
    """Columns of a model's parameters and of the multiply-adds of one prediction."""
    return (
        (
            Heading("Parameters", rising=True, detail=detail),
            lambda row: TableCell.magnitude(row.parameters, any_of(row)),
        ),
        (
            Heading("Multiply-adds", rising=True, detail=detail),
            lambda row: TableCell.magnitude(row.multiply_adds, any_of(row)),
        ),
    )


def share(rates: Rates) -> Estimate:
    """The share of all samples."""
    return rates.share


def balanced(rates: Rates) -> Estimate:
    """The mean over classes."""
    return rates.balanced


def usual(board: Board) -> Choose:
    """What is shown where there is place for one number: balanced accuracy if the test set is imbalanced."""
    return balanced if board.imbalanced else share


def of(rates: Rates | None, choose: Choose) -> Estimate | None:
    """One number of some rates, None where there are none."""
    return choose(rates) if rates else None


def shown(label: str, choose: Choose, *, ends: bool = False, bar: bool = False) -> Callable[[Row], TableCell]:
    """What makes a row's cell of a condition: accuracy on all its images in percent, or what became of it."""

    def cell(row: Row) -> TableCell:
        entry, evidence = row.cells[label], single(row, label)
        if entry.rates is None:
            return TableCell("failed" if entry.status == "failed" else NONE, evidence=evidence)
        return TableCell.share(choose(entry.rates), evidence, ends=ends, bar=bar)

    return cell


def after(label: str, choose: Choose) -> Callable[[Row], TableCell]:
    """What makes a row's cell of plain accuracy after a chain."""
    return lambda row: TableCell.share(of(row.cells[label].accuracy, choose), single(row, label))


def beside(
    board: Board, label: str, choose: Choose, at: int = 0, *, ends: bool = False, bar: bool = False
) -> Callable[[Row], TableCell]:
    """What makes a row's cell of a condition on the images of one of the board's comparisons."""

    def cell(row: Row) -> TableCell:
        rates = row.compared(label, at)
        if rates is None or rates == row.cells[label].rates:
            return shown(label, choose, ends=ends, bar=bar)(row) if rates else TableCell(NONE)
        title = f"{row.label}: {label} on {rates.share.n} images"
        classes = {f"class {name}": found for name, found in by_class(rates, board.dataset.class_names).items()}
        evidence = Evidence.of(title, [(row.label, label)], overall(rates) | classes)
        return TableCell.share(choose(rates), evidence, ends=ends, bar=bar)

    return cell


def covers(board: Board, label: str | None, at: int = 0) -> bool:
    """Whether any row has a condition on the images of one of the board's comparisons."""
    return label is not None and any(row.compared(label, at) for row in board.rows)


def union_name(condition: ConditionSpec) -> str:
    """A worst case over several threat models, as ``Worst case Linf 8/255, L2 0.5 and L1 12``."""
    return f"Worst case {listed([ThreatModel(norm, eps).label for norm, eps in condition.union])}"


def extent(values: set[int]) -> str:
    """``100``, or ``90–100`` where there are several values."""
    return str(min(values)) if len(values) == 1 else f"{min(values)}–{max(values)}"


def samples(found: Iterable[Rates | None]) -> str:
    """``n = 200``, or nothing where there are no rates."""
    sizes = {rates.share.n for rates in found if rates}
    return f"n = {extent(sizes)}" if sizes else ""


# ------------------------------------------------------------------------------------------------------------- evidence


def single(row: Row, condition: str | None) -> Evidence | None:
    """The evidence for a place's own numbers, or None where there is no record of it."""
    found = row.cells.get(condition or "") or row.checks.get(condition or "")
    key = next(iter((found.keys or {}).values()), None) if found else None
    return Evidence(f"record-{key}", "", ((row.label, condition or ""),)) if key else None


def worst_case(board: Board, row: Row, threat: str) -> Evidence:
    """What the row's worst case rests on."""
    places = [(row.label, condition) for condition in board.threats[threat]]
    rates = row.worst[threat]
    classes = {f"class {name}": figure for name, figure in by_class(rates, board.dataset.class_names).items()}
    return Evidence.of(f"{row.label}: worst case {threat}", places, overall(rates) | classes)


def ranked_evidence(board: Board, row: Row) -> Evidence | None:
    """What the row's rank rests on."""
    return worst_case(board, row, board.ranked_by) if board.ranked_by else single(row, board.clean_label)


def overall(rates: Rates | None) -> dict[str, Estimate]:
    """Rates over all classes, by name."""
    return {"all": rates.share, "balanced": rates.balanced, "worst class": rates.worst_class} if rates else {}


def by_class(rates: Rates | None, class_names: Sequence[str]) -> dict[str, Estimate]:
    """Rates by the names of their classes; nothing of many classes, which a table of their own holds."""
    found = zip(class_names, rates.per_class, strict=True) if rates and len(class_names) <= MANY_CLASSES else ()
    return {name: figure for name, figure in found if figure}


def any_of(row: Row) -> Evidence | None:
    """Where it is told what a row's models are: in any of their records."""
    return next((found for label in (*row.cells, *row.checks) if (found := single(row, label))), None)
