"""What a board says, as plain data: the one source of its markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from robbench.core.safe_text import visible
from robbench.evaluation.statistics import Scores, balanced, class_rates, combine, paired_difference, tie_leaders
from robbench.leaderboards.ablations import Pair, Scored, pairs
from robbench.leaderboards.aggregates import Rates, rates, scores
from robbench.leaderboards.check_results import Checked, checked
from robbench.leaderboards.corruption_results import Corrupted, corrupted
from robbench.leaderboards.curves import Curve, sizes, strength
from robbench.leaderboards.entries import Entry, entry
from robbench.leaderboards.table import Table, Threats, is_audited
from robbench.leaderboards.visible_cells import visible_cells
from robbench.results.schema import CellResult, ConditionSpec, DatasetSpec, Measure, ModelSpec, Training, digest

IMBALANCE = 1.5
"""From this ratio of the largest to the smallest class of the test set on, balanced figures stand beside plain ones."""


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        rank: ``1``, or ``1=`` where it is tied with others; empty where it is not ranked.
        unranked: Why it is not ranked.
        worst: The worst case by threat model; None where one of its conditions is not done.
        hardest: The condition of the ranking threat model that leaves the least; None where there is none.
        flags: Blocking audit flags, each with what was found.
        cautions: Audit notes, each with its remedy.
        checks: What checks found, by condition; None where a check is not for this row.
        training: What training the model cost, by seed; of older records nothing.
    """

    model: ModelSpec
    seeds: tuple[int, ...]
    rank: str
    unranked: str
    audited: bool
    flags: Mapping[str, str]
    cautions: Mapping[str, str]
    notes: tuple[str, ...]
    cells: Mapping[str, Entry]
    checks: Mapping[str, Checked | None]
    worst: Mapping[str, Rates | None]
    hardest: str | None
    training: Mapping[str, Training] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def undefended(self) -> bool:
        """Whether the model was trained without a defense and has none at inference."""
        return all(part.name == "none" for part in self.model.defenses)


@dataclass(frozen=True)
class Board:
    """Everything that a board says.

    Attributes:
        ranked_by: Label of the threat model that ranks, or None where balanced clean accuracy does.
        reference: Whether ``ranked_by`` is at the data set's reference eps.
        checks: Conditions that have no part in the ranking: they look for what the others missed.
        threats: Conditions by threat model.
        perturbed: The natural perturbation that the ranking shows: ``perturbation``, or the one that costs most.
        pairs: Effects of single changes: rows that differ in one part alone.
        margin: How far the best row lies above the best undefended one; None where that is the same row or missing.
        strength: Robust accuracy over eps, for each norm in which attacks within a ball were run at two eps or more.
        sizes: Robust accuracy over the size of the change, for each attack of minimum norm.
        corrupted: The rows under the suite of common corruptions, by label; the baseline is the first.
        imbalanced: Whether the test set is.
        rows: From best to worst, those that are not ranked last.
        settings: Protocol, precisions, devices and library versions, as lists of all that occur.
    """

    title: str
    grid: str
    dataset: DatasetSpec
    conditions: tuple[ConditionSpec, ...]
    checks: tuple[ConditionSpec, ...]
    ranked_by: str | None
    reference: bool
    threats: Mapping[str, tuple[str, ...]]
    perturbed: str | None
    pairs: tuple[Pair, ...]
    margin: Measure | None
    strength: tuple[Curve, ...]
    sizes: tuple[Curve, ...]
    corrupted: Mapping[str, Corrupted]
    imbalanced: bool
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]

    def ranking(self, row: Row) -> Rates | None:
        """What the row is ranked by."""
        return row.worst[self.ranked_by] if self.ranked_by else self.clean(row)

    def clean(self, row: Row) -> Rates | None:
        """The row's clean accuracy."""
        return row.cells[self.clean_label].rates if self.clean_label else None

    @property
    def clean_label(self) -> str | None:
        """The label of the clean condition, or None where the board has none."""
        return next((condition.label for condition in self.conditions if condition.kind == "clean"), None)

    @property
    def sound(self) -> tuple[Row, ...]:
        """The ranked rows without an audit flag, or all ranked rows where each has one."""
        ranked = tuple(row for row in self.rows if row.rank)
        return tuple(row for row in ranked if not row.flags) or ranked

    @property
    def undefended(self) -> Row | None:
        """The best undefended row."""
        return next((row for row in self.sound if row.undefended), None)

    def times(self, first: Row, second: Row) -> float | None:
        """How many times the passes of the first row's training the second's took, that of their starts included."""
        before, after = self._passes(first), self._passes(second)
        return after / before if before and after else None

    def _passes(self, row: Row) -> float:
        parts = [part.forwards + part.backwards for part in row.training.values()]
        start = next((other for other in self.rows if other.label == row.model.start), None)
        return float(np.mean(parts)) + (self._passes(start) if start else 0.0) if parts else 0.0


def board_data(title: str, grid: str, cells: Sequence[CellResult]) -> Board:
    """What the cells of one data set say.

    Rows are ranked by the worst case at the data set's reference eps, averaged per class: per seed and sample, whether
    it survives every attack of that threat model, on the samples that all of them and all seeds cover. Rows with audit
    flags rank below those without; rows that lack a needed result are not ranked.

    Unsafe characters of texts are made visible; see ``robbench.core.safe_text``.

    Args:
        title: Heading of the board.
        grid: Name of the grid.
        cells: Records with their outcomes, None unless done.

    Raises:
        ValueError: If the cells do not make one table.
    """
    table = Table.of(visible_cells(cells))
    threats = table.threats()
    ranked_by = next(iter(threats), None)
    scored = [_row(table, model, threats) for model in table.models]
    rows = _ranked(scored)
    test = [count for count in table.dataset.counts.get("test", ()) if count]
    made = Board(
        title=visible(title),
        grid=visible(grid),
        dataset=table.dataset,
        conditions=table.conditions,
        checks=table.checks,
        ranked_by=ranked_by.label if ranked_by else None,
        reference=ranked_by is not None and table.dataset.reference.get(ranked_by.norm) == ranked_by.eps,
        threats={threat.label: tuple(spec.label for spec in specs) for threat, specs in threats.items()},
        perturbed=_natural(table, [row for row, _ in scored]),
        pairs=pairs([_scored(table, model, threats) for model in table.models]),
        margin=None,
        strength=strength(table, threats),
        sizes=sizes(table),
        corrupted=corrupted(table),
        imbalanced=bool(test) and max(test) > IMBALANCE * min(test),
        rows=rows,
        settings=_settings(table),
    )
    return replace(made, margin=_margin(made, {row.label: found for row, found in scored}))


def _margin(board: Board, found: Mapping[str, Scores | None]) -> Measure | None:
    best, other = next(iter(board.sound), None), board.undefended
    if best is None or other is None or best is other:
        return None
    first, second = found[other.label], found[best.label]
    return paired_difference(first, second) if first and second else None


def _worst_case(table: Table, model: str, conditions: Sequence[ConditionSpec]) -> tuple[Rates, Scores] | None:
    by_seed = _by_seed(table, model, conditions)
    return rates(list(by_seed.values()), table.num_classes) if by_seed else None


def _row(table: Table, model: ModelSpec, threats: Threats) -> tuple[Row, Scores | None]:
    ranked_by = next(iter(threats), None)
    cells = {condition.label: entry(table, model.label, condition) for condition in table.conditions}
    worst = {threat: _worst_case(table, model.label, conditions) for threat, conditions in threats.items()}
    needed = threats[ranked_by] if ranked_by else [spec for spec in table.conditions if spec.kind == "clean"]
    ranking = worst[ranked_by] if ranked_by else _worst_case(table, model.label, needed) if needed else None
    troubles = [f"{spec.label}: {cells[spec.label].reason}" for spec in needed if cells[spec.label].reason]
    records = table.records(model.label)
    left = {spec.label: found.balanced.value for spec in needed if (found := cells[spec.label].rates)}
    row = Row(
        model=model,
        seeds=table.seeds[model.label],
        rank="",
        unranked="" if ranking else "; ".join(troubles) or "no sample that every condition covers",
        audited=ranked_by is not None and ranking is not None and is_audited(needed),
        flags=_gathered([(record.spec.seed, record.flags) for record in records]),
        cautions=_gathered([(record.spec.seed, record.cautions) for record in records]),
        notes=tuple(dict.fromkeys(note for record in records for note in record.notes)),
        cells=cells,
        checks={spec.label: checked(table, model.label, spec, threats) for spec in table.checks},
        worst={threat.label: case[0] if case else None for threat, case in worst.items()},
        hardest=min(left, key=lambda label: left[label]) if left and ranked_by else None,
        training={str(record.spec.seed): record.training for record in records if record.training},
    )
    return row, ranking[1] if ranking else None


def _scored(table: Table, model: ModelSpec, threats: Threats) -> Scored:
    clean = [condition for condition in table.conditions if condition.kind == "clean"]
    ranked_by, ranking = next(iter(threats.items()), (None, ()))
    others = [
        threat
        for threat, specs in threats.items()
        if ranked_by and threat.norm == ranked_by.norm and threat != ranked_by and _attacks(ranking) <= _attacks(specs)
    ]
    others.sort(key=lambda threat: threat.eps)
    return Scored(
        model,
        clean=_by_seed(table, model.label, clean),
        robust=_by_seed(table, model.label, ranking),
        elsewhere={threat.label: _by_seed(table, model.label, threats[threat]) for threat in others},
    )


def _attacks(conditions: Sequence[ConditionSpec]) -> set[str]:
    """What attacks the conditions are of, whatever their size."""
    return {
        digest(
            [[stage.model_dump(mode="json", exclude={"eps", "label"}) for stage in condition.stages], condition.target]
        )
        for condition in conditions
    }


def _by_seed(table: Table, model: str, conditions: Sequence[ConditionSpec]) -> dict[int, Scores]:
    """The worst case over some conditions, by seed; nothing where one of them is not done."""
    found = [table.outcomes(model, condition.label) for condition in conditions]
    done = [outcomes for outcomes in found if outcomes is not None]
    if not done or len(done) < len(found):
        return {}
    worst = [combine([scores(part) for part in parts], np.min) for parts in zip(*done, strict=True)]
    return dict(zip(table.seeds[model], worst, strict=True))


def _gathered(marks: Sequence[tuple[int, Mapping[str, str]]]) -> dict[str, str]:
    """Flags or cautions of a row's records, each once, with what was found; by seed where there are several."""
    several = len({seed for seed, _ in marks}) > 1
    texts: dict[str, dict[str, None]] = {}
    for seed, found in marks:
        for name, text in found.items():
            texts.setdefault(name, {})[f"seed {seed}: {text}" if several else text] = None
    return {name: "; ".join(found) for name, found in texts.items()}


def _ranked(scored: Sequence[tuple[Row, Scores | None]]) -> tuple[Row, ...]:
    ranked: list[Row] = []
    for flagged in (False, True):
        group = [(row, found) for row, found in scored if found is not None and bool(row.flags) is flagged]
        group.sort(key=lambda item: -_balanced(item[1]))
        leaders = tie_leaders([found for _, found in group])
        ranks = [f"{len(ranked) + leader + 1}{'=' if leaders.count(leader) > 1 else ''}" for leader in leaders]
        ranked += [replace(row, rank=rank) for (row, _), rank in zip(group, ranks, strict=True)]
    return (*ranked, *(row for row, found in scored if found is None))


def _balanced(found: Scores) -> float:
    return balanced(class_rates(found.values, found.labels, 0)).value


def _natural(table: Table, rows: Sequence[Row]) -> str | None:
    """The natural perturbation to show first: the one of that name, or else the one that costs the rows most."""
    for condition in table.conditions:
        if condition.kind == "natural" and [stage.name for stage in condition.stages] == ["perturbation"]:
            return condition.label
    means = {}
    for condition in table.conditions:
        entries = [row.cells[condition.label].rates for row in rows]
        done = [found.balanced.value for found in entries if found]
        if condition.kind == "natural" and done:
            means[condition.label] = fmean(done)
    return min(means, key=lambda label: means[label]) if means else None


def _settings(table: Table) -> dict[str, Any]:
    records = table.records()
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in (record.provenance.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    return {
        "protocol": sorted({record.spec.protocol for record in records}),
        "precision": sorted({record.spec.precision for record in records}),
        "device": sorted({record.spec.device for record in records}),
        "seeds": sorted({record.spec.seed for record in records}),
        "versions": {name: sorted(versions[name]) for name in sorted(versions)},
    }
