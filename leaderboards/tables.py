"""The tables of a board's README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from robbench.audit import CAUTIONS, FLAGS
from robbench.leaderboards.board import Board, Entry, Row
from robbench.leaderboards.curves import Curve
from robbench.leaderboards.figures import Figure, Rates
from robbench.leaderboards.text import NONE, TextTable, escape, interval, number, percent, value_list
from robbench.metrics import measures
from robbench.records import ConditionSpec
from robbench.threat import format_eps

Choose = Callable[[Rates], Figure]


def share(rates: Rates) -> Figure:
    """The share of all samples."""
    return rates.share


def balanced(rates: Rates) -> Figure:
    """The mean over classes."""
    return rates.balanced


def ranking(board: Board) -> TextTable:
    """Who stands where: clean, perturbed, worst cases, remarks."""
    others = [label for label in board.threats if label != board.ranked_by]
    both = board.imbalanced or not board.ranked_by
    plain = balanced if board.imbalanced else share
    headers = ["Rank", "Model", "Clean", *["Clean, balanced"] * both]
    if board.perturbed:
        headers.append(f"{escape(board.perturbed)}{', balanced' * board.imbalanced}")
    attacks = board.threats[board.ranked_by] if board.ranked_by else ()
    headers += [f"{escape(label)}{', balanced' * board.imbalanced}" for label in attacks]
    if board.ranked_by:
        headers.append(f"**Worst case {escape(board.ranked_by)}**{_samples(board, board.ranked_by)}")
    headers += [f"Worst case {escape(label)}{_samples(board, label)}" for label in others]
    lines = []
    for row in (row for row in board.rows if row.rank):
        clean = board.clean(row)
        line = [row.rank, escape(row.label), interval(_of(clean, share))]
        if both:
            line.append(interval(_of(clean, balanced)))
        if board.perturbed:
            line.append(_cell(row.cells[board.perturbed], plain))
        line += [_cell(row.cells[label], plain) for label in attacks]
        if board.ranked_by:
            line.append(f"**{interval(_of(board.ranking(row), balanced))}**")
        line += [percent(_of(row.worst[label], balanced)) for label in others]
        lines.append([*line, _remarks(board, row)])
    return TextTable([*headers, "Remarks"], lines, left=(0, 1, len(headers)))


def _samples(board: Board, threat: str) -> str:
    sizes = {rates.share.n for row in board.rows if (rates := row.worst[threat])}
    return f" (n = {_range(sizes)})" if sizes else ""


def _of(rates: Rates | None, choose: Choose) -> Figure | None:
    return choose(rates) if rates else None


def _cell(entry: Entry, choose: Choose) -> str:
    if entry.rates is None:
        return "failed" if entry.status == "failed" else NONE
    return percent(choose(entry.rates))


def _remarks(board: Board, row: Row) -> str:
    remarks = [f"**{escape(flag)}**" for flag in row.flags]
    if board.ranked_by and not row.audited:
        remarks.append("not audited")
    if any(found is not None and found.status in ("failed", "missing") for found in row.checks.values()):
        remarks.append("a check failed")
    if len(row.seeds) < len(board.settings["seeds"]):
        remarks.append(f"{len(row.seeds)} of {len(board.settings['seeds'])} seeds")
    if row.model.start:
        remarks.append(f"starts from {escape(row.model.start)}")
    return "; ".join(remarks)


def unranked(board: Board) -> TextTable:
    """The rows without a rank, and why."""
    return TextTable(
        ["Model", "Why"],
        [[escape(row.label), escape(row.unranked)] for row in board.rows if not row.rank],
        left=(0, 1),
    )


def by_seed(board: Board) -> TextTable:
    """What ranks, seed by seed, and its range."""
    seeds = board.settings["seeds"]
    lines = []
    for row in (row for row in board.rows if row.rank):
        found = board.ranking(row)
        values = dict(zip(row.seeds, found.balanced.seeds if found else (), strict=False))
        spread = f"{100 * min(values.values()):.1f}–{100 * max(values.values()):.1f}" if values else NONE
        lines.append(
            [escape(row.label), *(f"{100 * values[seed]:.1f}" if seed in values else NONE for seed in seeds), spread]
        )
    return TextTable(["Model", *(f"Seed {seed}" for seed in seeds), "Range"], lines)


def conditions(board: Board, choose: Choose) -> TextTable:
    """Every condition of every row; chains with the plain accuracy after them beside the robust one."""
    headers = ["Model"]
    for condition in board.conditions:
        sizes = {rates.share.n for row in board.rows if (rates := row.cells[condition.label].rates)}
        subset = f" (n = {_range(sizes)})" if sizes and (condition.sample is not None or condition.target) else ""
        headers.append(escape(condition.label) + subset)
        if condition.kind == "chain":
            headers.append(f"{escape(condition.label)}, plain")
    lines = []
    for row in board.rows:
        line = [escape(row.label)]
        for condition in board.conditions:
            entry = row.cells[condition.label]
            line.append(_cell(entry, choose))
            if condition.kind == "chain":
                line.append(percent(_of(entry.accuracy, choose)))
        lines.append(line)
    return TextTable(headers, lines)


def _range(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)}–{max(values)}"


def per_class(board: Board) -> Iterator[tuple[str, TextTable]]:
    """Right per class: clean, perturbed, the worst case, then each attack that it is made of, and chains."""
    for condition in board.conditions:
        if condition.kind == "clean":
            yield "Clean", _condition_classes(board, condition.label)
    if board.perturbed:
        yield f"Perturbed: {board.perturbed}", _condition_classes(board, board.perturbed)
    if board.ranked_by:
        worst = [row.worst[board.ranked_by] for row in board.rows]
        yield f"Worst case {board.ranked_by}", _class_table(board, worst, [None] * len(board.rows))
    attacked = board.threats[board.ranked_by] if board.ranked_by else ()
    chains = [condition.label for condition in board.conditions if condition.kind == "chain"]
    for label in (*(attacked if len(attacked) > 1 else ()), *chains):
        yield label, _condition_classes(board, label)


def _condition_classes(board: Board, label: str) -> TextTable:
    entries = [row.cells[label] for row in board.rows]
    f1 = [(entry.details or {}).get("macro_f1") for entry in entries]
    return _class_table(board, [entry.rates for entry in entries], f1)


def _class_table(board: Board, column: Sequence[Rates | None], f1: Sequence[Figure | None]) -> TextTable:
    train = board.dataset.counts.get("train", ())
    names = [
        f"{escape(name)} ({train[label]} train)" if label < len(train) else escape(name)
        for label, name in enumerate(board.dataset.class_names)
    ]
    lines = []
    for row, rates, score in zip(board.rows, column, f1, strict=True):
        if rates:
            figures = [rates.share, rates.balanced, rates.worst_class, score, *rates.per_class]
            lines.append([escape(row.label), *(percent(figure) for figure in figures)])
    return TextTable(["Model", "All", "Balanced", "Worst class", "Macro F1", *names], lines).without_empty()


def draws(board: Board) -> TextTable:
    """How natural perturbations vary over draws, and the worst of several."""
    names = ("draws_mean", "draws_std", "draws_min", "draws_max", *(f"worst_of_{n}" for n in measures.DRAWS))
    found = [
        [escape(row.label), escape(condition.label), *(percent(details.get(name)) for name in names)]
        for condition in board.conditions
        if condition.kind == "natural" and condition.draws > 1
        for row in board.rows
        if (details := row.cells[condition.label].details)
    ]
    headers = ["Mean", "Std", "Lowest", "Highest", *(f"Worst of {n}" for n in measures.DRAWS)]
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


def matrices(board: Board, row: Row) -> Iterator[tuple[str, TextTable]]:
    """The row's confusion matrices, clean and under the attack of the ranking threat model that leaves it least."""
    clean = next((condition.label for condition in board.conditions if condition.kind == "clean"), None)
    names = [escape(name) for name in board.dataset.class_names]
    for label in dict.fromkeys((clean, row.hardest)):
        if label is not None and row.cells[label].confusion:
            counts = row.cells[label].confusion
            lines = [[name, *map(str, line)] for name, line in zip(names, counts, strict=True)]
            yield label, TextTable(["true ↓ decided →", *names], lines)


def data(board: Board) -> TextTable:
    """Images per class and split."""
    parts = [part for part in ("train", "validation", "test", "gallery") if any(board.dataset.counts.get(part, ()))]
    lines = [
        [escape(name), *(f"{board.dataset.counts[part][label]:,}" for part in parts)]
        for label, name in enumerate(board.dataset.class_names)
    ]
    totals = [f"**{sum(board.dataset.counts[part]):,}**" for part in parts]
    return TextTable(["Class", *(part.capitalize() for part in parts)], [*lines, ["**all**", *totals]])


def specifications(board: Board) -> TextTable:
    """What each condition is, exactly, and what it costs."""
    lines = []
    for condition in board.conditions:
        entries = [row.cells[condition.label] for row in board.rows]
        sizes = {entry.rates.share.n for entry in entries if entry.rates}
        cost = [_mean(entries, name) for name in ("forwards", "backwards")]
        stages = "<br>then ".join(_stage(condition, place) for place in range(len(condition.stages)))
        lines.append(
            [
                escape(condition.label),
                condition.kind,
                stages or "unchanged images",
                escape(condition.target or NONE),
                str(condition.draws) if condition.kind == "natural" else NONE,
                _range(sizes) if sizes else NONE,
                *cost,
            ]
        )
    headers = ["Condition", "Kind", "Attacks in order", "Target", "Draws", "n", "Forwards", "Backwards"]
    return TextTable(headers, lines, left=(0, 1, 2, 3))


def _mean(entries: list[Entry], name: str) -> str:
    found = [entry.details[name].value for entry in entries if entry.details and name in entry.details]
    return number(sum(found) / len(found)) if found else NONE


def _stage(condition: ConditionSpec, place: int) -> str:
    stage = condition.stages[place]
    parameters = value_list([f"{name} = {value}" for name, value in sorted(stage.parameters.items())])
    limit = f"{stage.norm.capitalize()}, smallest change sought"
    if stage.norm == "none":
        limit = "chosen by the model's answers" if condition.kind == "attack" else "natural perturbation"
    if stage.eps is not None:
        limit = f"{stage.norm.capitalize()} ≤ {format_eps(stage.eps)}"
    traits = ["uses gradients"] * stage.white_box + ["toolbox: global random state, fixed batches"] * stage.global_state
    traits += [f"plugin {stage.source}"] if stage.source else []
    text = f"{stage.name} v{stage.version} ({parameters}); {limit}" + "".join(f"; {trait}" for trait in traits)
    return escape(text)


def models(board: Board) -> TextTable:
    """How each row was trained."""
    lines = []
    for row in board.rows:
        spec = row.model
        recipe = value_list([f"{name} = {value}" for name, value in sorted(spec.recipe.items())])
        lines.append(
            [
                escape(row.label),
                escape(spec.architecture.label),
                escape(spec.objective.label),
                escape(value_list([part.label for part in spec.defenses])),
                escape(spec.balancer.label),
                escape(recipe),
                escape(spec.start or NONE),
            ]
        )
    headers = ["Model", "Architecture", "Objective", "Defenses", "Balance", "Recipe", "Start"]
    return TextTable(headers, lines, left=range(len(headers)))


def remarks(board: Board) -> TextTable:
    """Audit flags and what else was noted when a row's cells were run."""
    lines = [
        [escape(row.label), kind, escape(text)]
        for row in board.rows
        for kind, text in (
            *(("flag", _explained(flag, found, FLAGS)) for flag, found in row.flags.items()),
            *(("caution", _explained(name, found, CAUTIONS)) for name, found in row.cautions.items()),
            *(("note", note) for note in row.notes),
        )
    ]
    return TextTable(["Model", "Kind", "Remark"], lines, left=range(3))


def _explained(name: str, found: str, meanings: Mapping[str, str]) -> str:
    parts = dict.fromkeys(part for part in (meanings.get(name, ""), found) if part)
    return ": ".join([name, ". ".join(parts)]) if parts else name


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


def checks(board: Board) -> TextTable:
    """What checks leave of each row, beside what the ranking attacks leave of the very same images."""
    lines = []
    for check in board.checks:
        for row in board.rows:
            found = row.checks[check.label]
            if found is not None and found.status == "done":
                lines.append(
                    [
                        escape(check.label),
                        escape(row.label),
                        str(found.left.n if found.left else 0),
                        interval(found.left),
                        percent(found.others),
                        percent(found.both),
                        NONE if found.found is None else str(found.found),
                        _cost(found.passes),
                        _cost(found.other_passes),
                    ]
                )
    headers = ["Check", "Model", "n", "Left", "Ranking attacks", "Both", "Found", "Passes", "Theirs"]
    return TextTable(headers, lines, left=(0, 1))


def _cost(passes: tuple[float, float] | None) -> str:
    return " + ".join(number(part) for part in passes) if passes else NONE


def troubles(board: Board) -> TextTable:
    """Cells that failed, are not supported or were not run."""
    words = {"failed": "failed", "unsupported": "not supported", "missing": "not run"}
    lines = [
        [escape(row.label), escape(condition.label), words[entry.status], escape(entry.reason)]
        for row in board.rows
        for condition in (*board.conditions, *board.checks)
        if (entry := row.cells.get(condition.label) or row.checks[condition.label]) and entry.status != "done"
    ]
    for label, figures in board.corrupted.items():
        for condition, (status, reason) in figures.troubles.items():
            lines.append([escape(label), escape(condition), words[status], escape(reason)])
    return TextTable(["Model", "Condition", "State", "Why"], lines, left=range(4))
