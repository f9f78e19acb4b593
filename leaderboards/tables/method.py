"""How the figures were made: data, attacks, models, what was noted of them, and what checks found."""

from __future__ import annotations

from collections.abc import Mapping

from robbench.audit import CAUTIONS, FLAGS
from robbench.leaderboards.board import Board, Entry
from robbench.leaderboards.tables.parts import extent
from robbench.leaderboards.text import NONE, TextTable, escape, interval, number, percent, value_list
from robbench.records import ConditionSpec
from robbench.threat import format_eps


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
                extent(sizes) if sizes else NONE,
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
