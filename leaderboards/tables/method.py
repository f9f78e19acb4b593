"""How the numbers were made: data, models, what was noted of them, and what checks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from robbench.core.threat_model import format_eps
from robbench.evaluation.audit_flags import CAUTIONS, FLAGS
from robbench.leaderboards.board import Board
from robbench.leaderboards.markdown import NONE, number, value_list
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
from robbench.leaderboards.table import ThreatModel
from robbench.leaderboards.tables.parts import MODEL, Column, model_size
from robbench.leaderboards.tables.robustness import parameters
from robbench.results.schema import ModelSpec, PartSpec


def data(board: Board) -> Sheet:
    """Images per class and split."""
    counts = board.dataset.counts
    parts = [part for part in ("train", "validation", "test", "gallery") if any(counts.get(part, ()))]
    lines = [
        SheetLine((TableCell(name), *(TableCell.count(counts[part][label]) for part in parts)))
        for label, name in enumerate(board.dataset.class_names)
    ]
    lines.append(SheetLine((TableCell("all"), *(TableCell.count(sum(counts[part])) for part in parts))))
    headings = (*words("Class"), *numbers(*(part.capitalize() for part in parts)))
    return Sheet("Images per class", headings, tuple(lines), total=True)


def models(board: Board) -> Sheet:
    """How each row was trained, and how large it is; of its recipe what is not the same for all rows."""
    usual = usual_recipe(board)

    def recipe(spec: ModelSpec) -> str:
        return parameters({name: value for name, value in spec.recipe.items() if name not in usual})

    columns: list[Column] = [
        MODEL,
        (word("Architecture"), lambda row: TableCell(row.model.architecture.label)),
        *model_size(),
        (word("Objective"), lambda row: TableCell(row.model.objective.label)),
        (word("Defenses"), lambda row: TableCell(value_list(part.label for part in row.model.defenses))),
        (word("Balancing"), lambda row: TableCell(row.model.balancer.label)),
        (word("Recipe"), lambda row: TableCell(recipe(row.model))),
        (word("Start"), lambda row: TableCell(row.model.start or NONE)),
    ]
    return by_row("Models", columns, board.rows).without_empty()


def usual_recipe(board: Board) -> dict[str, object]:
    """The fields of the recipe that are the same for all rows."""
    first, *others = (row.model.recipe for row in board.rows)
    return {
        name: value
        for name, value in first.items()
        if all(name in recipe and recipe[name] == value for recipe in others)
    }


def components(board: Board) -> Sheet:
    """What the models are made of, each part once, with all its parameters."""
    found: dict[tuple[str, str], PartSpec] = {}
    for row in board.rows:
        spec = row.model
        named = [("architecture", spec.architecture), ("objective", spec.objective), ("balancing", spec.balancer)]
        for kind, part in (*named, *(("defense", part) for part in spec.defenses)):
            found.setdefault((kind, part.label), part)
    reference = board.dataset.reference.get("linf")
    lines = []
    for (kind, label), part in sorted(found.items()):
        values = dict(part.parameters)
        if kind == "defense" and values.get("eps", 0) is None and reference is not None:
            values["eps"] = f"{format_eps(reference)}, the data set's reference"
        source = f"plugin {part.source}" if part.source else NONE
        lines.append(SheetLine(texts(kind, label, f"{part.name} v{part.version}", parameters(values), source)))
    headings = words("Part", "Label", "Component", "Parameters", "Source")
    return Sheet("Components", headings, tuple(lines)).without_empty()


def remarks(board: Board) -> Sheet:
    """How the data set was read, audit flags, and what else was noted when a row's cells were run."""
    lines = [SheetLine(texts("all", "data", remark)) for remark in board.dataset.remarks]
    lines += [
        SheetLine(texts(row.label, kind, text), row.label)
        for row in board.rows
        for kind, text in (
            *(("flag", _explained(flag, found, FLAGS)) for flag, found in row.flags.items()),
            *(("caution", _explained(name, found, CAUTIONS)) for name, found in row.cautions.items()),
            *(("note", note) for note in row.notes),
        )
    ]
    return Sheet("Flags, cautions and notes", words("Model", "Kind", "Remark"), tuple(lines))


def _explained(name: str, found: str, meanings: Mapping[str, str]) -> str:
    parts = dict.fromkeys(part for part in (meanings.get(name, ""), found) if part)
    return ": ".join([name, ". ".join(parts)]) if parts else name


def checks(board: Board, compared: bool = False) -> Sheet:
    """What checks leave of each row, beside what the ranking attacks leave of the very same images.

    Args:
        board: The board.
        compared: Whether to leave out checks of sizes at which no ranking attack was run.
    """
    lines = []
    for check in board.checks:
        threat = ThreatModel(check.stages[0].norm, check.stages[0].eps or 0.0).label
        for row in board.rows:
            found = row.checks[check.label]
            if found is None or found.status != "done" or (compared and found.others is None):
                continue
            named = {"check": found.left, "ranking attacks": found.others, "both": found.both}
            ranking = board.threats[threat] if found.others else ()
            evidence = Evidence.of(
                f"{row.label}: {check.label}",
                [(row.label, label) for label in (check.label, *ranking)],
                {name: figure for name, figure in named.items() if figure},
            )
            cells = (
                *texts(check.label, row.label),
                TableCell.count(found.left.n if found.left else 0, evidence),
                TableCell.share(found.left, evidence, ends=True),
                *(TableCell.share(figure, evidence) for figure in (found.others, found.both)),
                TableCell(NONE) if found.found is None else TableCell.count(found.found, evidence),
                *(_passes(passes, evidence) for passes in (found.passes, found.other_passes)),
            )
            lines.append(SheetLine(cells, row.label))
    headings = (
        *words("Check", "Model"),
        *numbers("n", "Robust to check", "Robust to ranking attacks"),
        Heading("Robust to both", detail=Detail.PAGE),
        *numbers("Found by check alone", "Check passes", "Ranking passes"),
    )
    return Sheet("Checks", headings, tuple(lines), label=1).without_empty()


def _passes(passes: tuple[float, float] | None, evidence: Evidence) -> TableCell:
    if passes is None:
        return TableCell(NONE)
    return TableCell(" + ".join(map(number, passes)), sum(passes), evidence=evidence)


def troubles(board: Board) -> Sheet:
    """Cells that failed, are not supported or were not run; those of the same fate on one line."""
    names = {"failed": "failed", "unsupported": "not supported", "missing": "not run"}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for row in board.rows:
        for condition in (*board.conditions, *board.checks):
            entry = row.cells.get(condition.label) or row.checks[condition.label]
            if entry and entry.status != "done":
                rows.setdefault((condition.label, names[entry.status], entry.reason), []).append(row.label)
    for label, found in board.corrupted.items():
        for name, (status, reason) in found.troubles.items():
            rows.setdefault((name, names[status], reason), []).append(label)
    fates: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for (name, state, reason), labels in rows.items():
        fates.setdefault((tuple(labels), state, reason), []).append(name)
    everyone = [row.label for row in board.rows]
    lines = [
        SheetLine(texts(_among(labels, everyone), _several(conditions), state, reason), _alone(labels))
        for (labels, state, reason), conditions in fates.items()
    ]
    return Sheet("Failed, not supported or not run", words("Model", "Condition", "State", "Why"), tuple(lines))


def _alone(labels: Sequence[str]) -> str | None:
    return labels[0] if len(labels) == 1 else None


def _among(labels: Sequence[str], everyone: Sequence[str]) -> str:
    """Rows by their names, or by the names of the few that are none of them."""
    others = [label for label in everyone if label not in labels]
    if len(others) < min(len(labels), 4):
        return f"all but {', '.join(others)}" if others else "all"
    return ", ".join(labels)


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})"
