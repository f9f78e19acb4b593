"""How the figures were made: data, attacks, models, what was noted of them, and what checks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from robbench.core.threat_model import format_eps
from robbench.evaluation.audit import CAUTIONS, FLAGS
from robbench.leaderboards.board import Board, Entry
from robbench.leaderboards.markdown import NONE, TextTable, escape, interval, number, percent, value_list
from robbench.leaderboards.tables.parts import extent
from robbench.results.schema import ConditionSpec, PartSpec


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
    return number(fmean(found)) if found else NONE


def _stage(condition: ConditionSpec, place: int) -> str:
    stage = condition.stages[place]
    parameters = _parameters(stage.parameters)
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
    """How each row was trained; of its recipe what is not the same for all rows."""
    usual = usual_recipe(board)
    lines = []
    for row in board.rows:
        spec = row.model
        lines.append(
            [
                escape(row.label),
                escape(spec.architecture.label),
                escape(spec.objective.label),
                escape(value_list([part.label for part in spec.defenses])),
                escape(spec.balancer.label),
                escape(_parameters({name: value for name, value in spec.recipe.items() if name not in usual})),
                escape(spec.start or NONE),
            ]
        )
    headers = ["Model", "Architecture", "Objective", "Defenses", "Balance", "Recipe", "Start"]
    return TextTable(headers, lines, left=range(len(headers))).without_empty()


def usual_recipe(board: Board) -> dict[str, object]:
    """The fields of the recipe that are the same for all rows."""
    first, *others = (row.model.recipe for row in board.rows)
    return {
        name: value
        for name, value in first.items()
        if all(name in recipe and recipe[name] == value for recipe in others)
    }


def components(board: Board) -> TextTable:
    """What the models are made of, each part once, with all its parameters."""
    found: dict[tuple[str, str], PartSpec] = {}
    for row in board.rows:
        spec = row.model
        named = [("architecture", spec.architecture), ("objective", spec.objective), ("balance", spec.balancer)]
        for kind, part in (*named, *(("defense", part) for part in spec.defenses)):
            found.setdefault((kind, part.label), part)
    reference = board.dataset.reference.get("linf")
    lines = []
    for (kind, label), part in sorted(found.items()):
        parameters = dict(part.parameters)
        if kind == "defense" and parameters.get("eps", 0) is None and reference is not None:
            parameters["eps"] = f"{format_eps(reference)}, the data set's reference"
        source = f"plugin {part.source}" if part.source else NONE
        lines.append([kind, escape(label), f"{part.name} v{part.version}", escape(_parameters(parameters)), source])
    headers = ["Part", "Label", "Component", "Parameters", "Source"]
    return TextTable(headers, lines, left=range(len(headers))).without_empty()


def _parameters(values: Mapping[str, object]) -> str:
    return value_list(f"{name} = {value}" for name, value in sorted(values.items()))


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
    headers = ["Check", "Model", "n", "Left", "Ranking attacks", "Both", "Found", "Attack passes", "Theirs"]
    return TextTable(headers, lines, left=(0, 1))


def _cost(passes: tuple[float, float] | None) -> str:
    return " + ".join(number(part) for part in passes) if passes else NONE


def troubles(board: Board) -> TextTable:
    """Cells that failed, are not supported or were not run; those of the same fate on one line."""
    words = {"failed": "failed", "unsupported": "not supported", "missing": "not run"}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for row in board.rows:
        for condition in (*board.conditions, *board.checks):
            entry = row.cells.get(condition.label) or row.checks[condition.label]
            if entry and entry.status != "done":
                rows.setdefault((condition.label, words[entry.status], entry.reason), []).append(row.label)
    for label, figures in board.corrupted.items():
        for name, (status, reason) in figures.troubles.items():
            rows.setdefault((name, words[status], reason), []).append(label)
    fates: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for (name, word, reason), labels in rows.items():
        fates.setdefault((tuple(labels), word, reason), []).append(name)
    everyone = [row.label for row in board.rows]
    lines = [
        [_among(labels, everyone), _several(names), word, escape(reason)]
        for (labels, word, reason), names in fates.items()
    ]
    return TextTable(["Model", "Condition", "State", "Why"], lines, left=range(4))


def _among(labels: Sequence[str], everyone: Sequence[str]) -> str:
    """Rows by their names, or by the names of the few that are none of them."""
    others = [label for label in everyone if label not in labels]
    if len(others) < min(len(labels), 4):
        return f"all but {escape(', '.join(others))}" if others else "all"
    return escape(", ".join(labels))


def _several(names: Sequence[str]) -> str:
    return escape(", ".join(names)) if len(names) < 4 else f"{escape(names[0])} to {escape(names[-1])} ({len(names)})"
