"""The tables of a page that hold a board's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from robbench.core.corruption_kinds import EXTRA, MAIN
from robbench.core.threat_model import format_eps
from robbench.leaderboards import tables
from robbench.leaderboards.aggregates import Figure, Rates
from robbench.leaderboards.board import Board, Row
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.html.sheets import Cell, Heading, Line, Records, Sheet, Source
from robbench.leaderboards.markdown import NONE, number
from robbench.leaderboards.tables.parts import Choose, extent, of

Column = tuple[Heading, Callable[[Row], Cell]]


def overall(rates: Rates | None) -> dict[str, Figure]:
    """Rates over all classes, by name."""
    return {"all": rates.share, "balanced": rates.balanced, "worst class": rates.worst_class} if rates else {}


def by_class(rates: Rates | None, class_names: Sequence[str]) -> dict[str, Figure]:
    """Rates by the names of their classes."""
    found = zip(class_names, rates.per_class, strict=True) if rates else ()
    return {name: figure for name, figure in found if figure}


def clean(board: Board) -> str | None:
    """The label of the condition that changes nothing, or None where the board has none."""
    return next((condition.label for condition in board.conditions if condition.kind == "clean"), None)


def worst_case(board: Board, row: Row, threat: str) -> Source:
    """What the row's worst case rests on."""
    places = [(row.label, condition) for condition in board.threats[threat]]
    rates = row.worst[threat]
    classes = {f"class {name}": figure for name, figure in by_class(rates, board.dataset.class_names).items()}
    return Source.of(f"{row.label}: worst case {threat}", places, overall(rates) | classes)


def ranked_source(board: Board, records: Records, row: Row) -> Source | None:
    """What the row's place rests on."""
    if board.ranked_by:
        return worst_case(board, row, board.ranked_by)
    return Source.single(records, row.label, clean(board) or "")


def ranking(board: Board, records: Records) -> Sheet:
    """Who stands where, how sure that is, and what it took."""
    rows = [row for row in board.rows if row.rank]
    unchanged = clean(board)
    choose = tables.balanced if board.imbalanced else tables.share
    suffix = ", balanced" if board.imbalanced else ""
    remarks = {row.label: line[-1] for row, line in zip(rows, tables.ranking(board).lines, strict=True)}
    columns: list[Column] = [
        (Heading("Rank", rising=True), lambda row: Cell(row.rank, float(row.rank.rstrip("=")))),
        (Heading("Model", number=False), lambda row: Cell(row.label, below=remarks[row.label])),
    ]
    if board.ranked_by:
        columns.append(_worst_column(board, board.ranked_by, leads=True))
    if unchanged is not None:
        columns.append((Heading("Clean"), _shown(records, unchanged, tables.share, ends=True)))
        if board.imbalanced or not board.ranked_by:
            balanced = _shown(records, unchanged, tables.balanced, ends=True, bar=not board.ranked_by)
            columns.append((Heading("Clean, balanced"), balanced))
    if board.perturbed:
        columns.append((Heading(board.perturbed + suffix), _shown(records, board.perturbed, choose)))
    if board.ranked_by:
        threat = board.ranked_by
        columns += [
            (Heading(label + suffix, below=_samples(row.cells[label].rates for row in board.rows)), column)
            for label, column in ((label, _shown(records, label, choose)) for label in board.threats[threat])
        ]
        columns += [_worst_column(board, other) for other in board.threats if other != threat]
        columns.append((Heading("Attack passes", rising=True), lambda row: _passes(board, row, threat)))
    return _sheet("Rows from best to worst", columns, rows, label=1)


def _shown(
    records: Records, label: str, choose: Choose, *, ends: bool = False, bar: bool = False
) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        source = Source.single(records, row.label, label)
        entry = row.cells[label]
        if entry.rates is None:
            return Cell("failed" if entry.status == "failed" else NONE, source=source)
        return Cell.share(choose(entry.rates), source, ends=ends, bar=bar)

    return cell


def _worst_column(board: Board, threat: str, *, leads: bool = False) -> Column:
    heading = Heading(f"Worst case {threat}", below=_samples(row.worst[threat] for row in board.rows))

    def cell(row: Row) -> Cell:
        figure = of(row.worst[threat], tables.balanced)
        return Cell.share(figure, worst_case(board, row, threat), ends=leads, bar=leads)

    return heading, cell


def _samples(found: Iterable[Rates | None]) -> str:
    """``n = 200``, or nothing where there are no rates."""
    sizes = {rates.share.n for rates in found if rates}
    return f"n = {extent(sizes)}" if sizes else ""


def _passes(board: Board, row: Row, threat: str) -> Cell:
    """What the attacks of a threat model spent on an image of the row."""
    found = [row.cells[label].details or {} for label in board.threats[threat]]
    spent = [
        math.fsum(details[name].value for details in found if name in details) for name in ("forwards", "backwards")
    ]
    hint = f"{number(spent[0])} forward + {number(spent[1])} backward passes per image, all attacks that rank"
    return Cell(number(sum(spent)), sum(spent), worst_case(board, row, threat), hint)


def conditions(board: Board, records: Records, choose: Choose, caption: str) -> Sheet:
    """Every condition of every row; chains with the plain accuracy after them beside the robust one."""
    columns: list[Column] = [(Heading("Model", number=False), lambda row: Cell(row.label))]
    for condition in board.conditions:
        label = condition.label
        sizes = {rates.share.n for row in board.rows if (rates := row.cells[label].rates)}
        subset = f"n = {extent(sizes)}" if sizes and (condition.sample is not None or condition.target) else ""
        columns.append((Heading(label, below=subset), _shown(records, label, choose)))
        if condition.kind == "chain":
            columns.append((Heading(f"{label}, plain"), _after(records, label, choose)))
    return _sheet(caption, columns, board.rows)


def _after(records: Records, label: str, choose: Choose) -> Callable[[Row], Cell]:
    return lambda row: Cell.share(of(row.cells[label].accuracy, choose), Source.single(records, row.label, label))


def classes(board: Board, records: Records) -> Iterator[Sheet]:
    """Class by class: clean, perturbed, the worst case, then each attack that it is made of, and chains."""
    chains = [condition.label for condition in board.conditions if condition.kind == "chain"]
    for label in (clean(board), board.perturbed):
        if label is not None:
            yield _condition_classes(board, records, label)
    if board.ranked_by:
        threat = board.ranked_by
        yield _classes(
            board, f"Worst case {threat}", lambda row: (row.worst[threat], None, worst_case(board, row, threat))
        )
    for label in (*(board.threats[board.ranked_by] if board.ranked_by else ()), *chains):
        yield _condition_classes(board, records, label)


def _condition_classes(board: Board, records: Records, label: str) -> Sheet:
    def found(row: Row) -> tuple[Rates | None, Figure | None, Source | None]:
        entry = row.cells[label]
        return entry.rates, (entry.details or {}).get("macro_f1"), Source.single(records, row.label, label)

    return _classes(board, label, found)


def _classes(
    board: Board, caption: str, found: Callable[[Row], tuple[Rates | None, Figure | None, Source | None]]
) -> Sheet:
    train = board.dataset.counts.get("train", ())
    names = [
        Heading(name, below=f"{train[at]:,} train" if at < len(train) else "")
        for at, name in enumerate(board.dataset.class_names)
    ]
    headings = [Heading("Model", number=False), *map(Heading, ("All", "Balanced", "Worst class", "Macro F1")), *names]
    lines = []
    for row in board.rows:
        rates, score, source = found(row)
        if rates:
            figures = [rates.share, rates.balanced, rates.worst_class, score, *rates.per_class]
            lines.append(Line((Cell(row.label), *(Cell.share(figure, source) for figure in figures)), row.label))
    return Sheet(caption, tuple(headings), tuple(lines)).without_empty()


def curve(board: Board, drawn: Curve, *, median: bool) -> Sheet:
    """The share that withstands changes of some sizes; with the median size at success where that is asked for."""
    choose = tables.balanced if board.imbalanced else tables.share
    radii = [f"{drawn.norm.capitalize()} ≤ {format_eps(radius)}" for radius in drawn.radii]
    lines = []
    for row in board.rows:
        line = drawn.lines.get(row.label)
        if line is None:
            continue
        figures = dict(zip(radii, map(choose, line.points), strict=True)) | {"area": choose(line.area)}
        places = [(row.label, condition) for condition in drawn.conditions]
        source = Source.of(f"{row.label}: withstood, {drawn.label}", places, figures)
        size = (row.cells[drawn.conditions[0]].details or {}).get(f"{drawn.norm}_median_success")
        sizes = [Cell(number(size.value), size.value, source) if size else Cell(NONE)] * median
        n = Cell(str(line.area.share.n), line.area.share.n, source)
        cells = [Cell(row.label), *(Cell.share(figure, source) for figure in figures.values()), *sizes, n]
        lines.append(Line(tuple(cells), row.label))
    headings = ["Model", *radii, "Area", *["Median at success"] * median, "n"]
    return Sheet(
        f"Withstood: {drawn.label}", tuple(Heading(text, at > 0) for at, text in enumerate(headings)), tuple(lines)
    )


def corruptions(board: Board, records: Records) -> Sheet:
    """The suite of corruptions, row by row: means, errors relative to the baseline, and every kind."""
    places = suite(records)
    kinds = [kind for kind in (*MAIN, *EXTRA) if any(found == kind for found, _ in places)]
    lines = []
    for label, figures in board.corrupted.items():
        means = [(figures.mean, "Mean of 15", MAIN), (figures.mean_all, "Mean of 19", (*MAIN, *EXTRA))]
        means += [(figures.mce, "mCE", MAIN), (figures.relative_mce, "Relative mCE", MAIN)]
        baseline = next(iter(board.corrupted))
        cells = [Cell(label)]
        for value, name, chosen in means:
            rows = dict.fromkeys([label, baseline] if "CE" in name else [label])
            used = [(row, places[place]) for row in rows for place in places if place[0] in chosen]
            cells.append(_mean(value, Source.of(f"{label}: {name}", used)))
        for kind in kinds:
            used = [(label, condition) for (found, _), condition in places.items() if found == kind]
            by_severity = {
                f"severity {severity}": rates.share
                for (found, severity), rates in figures.rates.items()
                if found == kind
            }
            cells.append(_mean(figures.kind(kind), Source.of(f"{label}: {kind}", used, by_severity)))
        lines.append(Line(tuple(cells), label))
    headings = [Heading("Model", number=False), Heading("Mean of 15"), Heading("Mean of 19")]
    headings += [Heading("mCE", rising=True), Heading("Relative mCE", rising=True), *map(Heading, kinds)]
    return Sheet("Common corruptions", tuple(headings), tuple(lines)).without_empty()


def suite(records: Records) -> dict[tuple[str, int], str]:
    """The labels of the suite's conditions by kind and severity."""
    specs = {found[0].spec.condition.label: found[0].spec.condition for found in records.values()}
    return {
        (str(stage.parameters["kind"]), int(stage.parameters["severity"])): label
        for label, spec in specs.items()
        for stage in spec.stages
        if [part.name for part in spec.stages] == ["corruption"]
    }


def _mean(value: float | None, source: Source) -> Cell:
    return Cell(NONE) if value is None else Cell(f"{100 * value:.1f}", value, source)


def _sheet(caption: str, columns: Sequence[Column], rows: Sequence[Row], label: int = 0) -> Sheet:
    lines = tuple(Line(tuple(cell(row) for _, cell in columns), row.label) for row in rows)
    return Sheet(caption, tuple(heading for heading, _ in columns), lines, label)
