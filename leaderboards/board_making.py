"""Making a board: the cells of one data set as rows, compared and ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from robbench.core.safe_text import visible
from robbench.evaluation.audit_flags import UNRANKED
from robbench.evaluation.statistics import Scores, balanced_mean, tie_leaders
from robbench.leaderboards.ablations import Change, Scored, margin, pairs
from robbench.leaderboards.aggregates import Rates
from robbench.leaderboards.board import IMBALANCE, Board, Row
from robbench.leaderboards.certificates import Certificates
from robbench.leaderboards.check_results import checked
from robbench.leaderboards.comparison import (
    ComparableCases,
    Images,
    by_images,
    common_images,
    comparable,
    rated,
    shown_perturbation,
    worst_by_seed,
)
from robbench.leaderboards.corruption_results import corrupted
from robbench.leaderboards.curves import sizes, strength
from robbench.leaderboards.entries import entry
from robbench.leaderboards.optimality import compared_norms
from robbench.leaderboards.table import Table, ThreatModel, Threats, is_audited
from robbench.leaderboards.visible_cells import visible_cells
from robbench.results.schema import CellResult, ConditionSpec, ModelSpec


def board_data(title: str, grid: str, cells: Sequence[CellResult], rank_by: str = "") -> Board:
    """What the cells of one data set say.

    Rows are ranked by the worst case at the data set's reference eps, averaged per class: per seed and sample, whether
    it survives every attack of that threat model, on the samples that all of them, all seeds and all rows cover. Where
    the grid says so, or nothing is attacked, they are ranked by balanced clean accuracy. Rows with audit flags rank
    below those without; rows that lack a needed result are not ranked.

    Unsafe characters of texts are made visible; see ``robbench.core.safe_text``.

    Args:
        title: Heading of the board.
        grid: Name of the grid.
        cells: Records with their outcomes, None unless done.
        rank_by: The threat model to rank by where the cells have it, as ``linf@8/255``, or ``clean``.

    Raises:
        ValueError: If the cells do not make one table.
    """
    table = Table.of(visible_cells(cells))
    threats = table.threats(rank_by)
    by_clean = rank_by in {spec.kind for spec in table.conditions if spec.kind == "clean"}
    ranked_by = None if by_clean else next(iter(threats), None)
    perturbed = shown_perturbation(table)
    shown = [spec for spec in table.conditions if spec.kind == "clean"]
    shown += [spec for spec in table.conditions if threats and spec.label == perturbed]
    images = {spec.label: common_images(table, [spec]) for spec in table.conditions}
    plan = _Plan(threats, ranked_by, comparable(table, threats, shown, by_clean), images)
    scored = [_row(table, model, plan) for model in table.models]
    rows = _ranked(scored)
    test = [count for count in table.dataset.counts.get("test", ()) if count]
    made = Board(
        title=visible(title),
        grid=visible(grid),
        dataset=table.dataset,
        conditions=table.conditions,
        checks=table.checks,
        ranked_by=ranked_by.label if ranked_by else None,
        chosen=by_clean or (ranked_by is not None and ranked_by.asked == rank_by),
        reference=ranked_by is not None and table.dataset.reference.get(ranked_by.norm) == ranked_by.eps,
        threats={threat.label: tuple(spec.label for spec in specs) for threat, specs in threats.items()},
        comparisons=tuple(comparison for comparison, _ in plan.comparisons),
        same_images=by_images(plan.images),
        perturbed=perturbed,
        pairs=pairs(
            [_scored(table, model, plan) for model in table.models], {row.label for row, _ in scored if row.flags}
        ),
        margin=None,
        strength=strength(table, threats),
        sizes=sizes(table, threats),
        minimal_norms=compared_norms(table),
        certified=Certificates.of(table, threats),
        corrupted=corrupted(table),
        imbalanced=bool(test) and max(test) > IMBALANCE * min(test),
        rows=rows,
        settings=table.settings(),
    )
    return replace(made, margin=_margin(made, table, plan))


def _margin(board: Board, table: Table, plan: _Plan) -> Change | None:
    best, other = next(iter(board.sound), None), board.baseline
    if best is None or other is None or best is other:
        return None
    ranking, images = _ranking(table, plan), plan.images_of(None)
    return margin(*(worst_by_seed(table, row.label, ranking, images) for row in (other, best)))


def _ranking(table: Table, plan: _Plan) -> Sequence[ConditionSpec]:
    """The conditions that rows are ranked by."""
    if plan.ranked_by:
        return plan.threats[plan.ranked_by]
    return [spec for spec in table.conditions if spec.kind == "clean"]


@dataclass(frozen=True)
class _Plan:
    """What a board compares, and on which images.

    Attributes:
        threats: The conditions by threat model, the one that ranks first.
        ranked_by: The threat model that ranks, None where clean accuracy does.
        comparisons: With their images, the one that ranks first.
        images: Those of each condition that all rows have.
    """

    threats: Threats
    ranked_by: ThreatModel | None
    comparisons: Sequence[tuple[ComparableCases, Images]]
    images: Mapping[str, Images]

    @property
    def attacked(self) -> int:
        """Which comparison has the worst case that stands beside clean accuracy."""
        first = {threat.label for threat in list(self.threats)[:1]}
        return next((at for at, (one, _) in enumerate(self.comparisons) if first & set(one.threats)), 0)

    def images_of(self, threat: ThreatModel | None) -> Images | None:
        """Those that a worst case is taken on; those of the ranking where it is of none."""
        found = (images for comparison, images in self.comparisons if not threat or threat.label in comparison.threats)
        return next(found, None)


def _row(table: Table, model: ModelSpec, plan: _Plan) -> tuple[Row, Scores | None]:
    threats, label = plan.threats, model.label
    threat, attacks = next(iter(threats.items()), (None, ()))
    cells = {spec.label: entry(table, label, spec, plan.images[spec.label]) for spec in table.conditions}
    worst = {threat: rated(table, label, specs, plan.images_of(threat)) for threat, specs in threats.items()}
    needed, first = _ranking(table, plan), plan.ranked_by
    ranking = worst[first] if first else rated(table, label, needed, plan.images_of(None)) if needed else None
    troubles = [f"{spec.label}: {cells[spec.label].reason}" for spec in needed if cells[spec.label].reason]
    checks = {spec.label: checked(table, label, spec, threats) for spec in table.checks}
    # Checks at the size that ranks look for what the others missed there.
    looked = [spec for spec in table.checks if (one := checks[spec.label]) and one.status == "done" and one.others]
    clean = [found for spec in table.conditions if spec.kind == "clean" and (found := cells[spec.label].rates)]
    records = table.records(label)
    alongside = tuple(_alongside(table, label, plan, images) for _, images in plan.comparisons)
    row = Row(
        model=model,
        seeds=table.seeds[label],
        rank="",
        unranked="" if ranking else "; ".join(troubles) or "no image that every condition and the other rows have",
        audited=threat is not None and worst[threat] is not None and is_audited([*attacks, *looked]),
        flags=_gathered([(record.spec.seed, record.flags) for record in records]),
        cautions=_gathered([(record.spec.seed, record.cautions) for record in records]),
        notes=tuple(dict.fromkeys(note for record in records for note in record.notes)),
        cells=cells,
        checks=checks,
        worst={threat.label: case[0] if case else None for threat, case in worst.items()},
        alongside=alongside,
        hardest=None,
        training={str(record.spec.seed): record.training for record in records if record.training},
        parameters=max((record.parameters for record in records), default=0),
        multiply_adds=max((record.multiply_adds for record in records), default=0),
        above_chance=(clean[0].balanced.low or 0.0) > 1 / table.num_classes if clean else None,
    )
    left = {spec.label: found.balanced.value for spec in attacks if (found := row.compared(spec.label, plan.attacked))}
    hardest = min(left, key=lambda name: left[name], default=None)
    if UNRANKED in row.flags:
        return replace(row, hardest=hardest, unranked=f"{UNRANKED}: {row.flags[UNRANKED]}"), None
    return replace(row, hardest=hardest), ranking[1] if ranking else None


def _alongside(table: Table, model: str, plan: _Plan, images: Images) -> dict[str, Rates | None]:
    """The row's accuracy on some images under the conditions that have others as well."""
    found = {}
    for spec in table.conditions if len(images) else ():
        if not np.array_equal(plan.images[spec.label], images):
            one = rated(table, model, [spec], images)
            found[spec.label] = one[0] if one else None
    return found


def _scored(table: Table, model: ModelSpec, plan: _Plan) -> Scored:
    """The row's samples: attacked those of the ranking throughout, clean all that there are."""
    first, *others = plan.threats or (None,)
    images = plan.images_of(first)
    same = plan.comparisons[plan.attacked][0].threats if plan.comparisons else ()
    alike = [threat for threat in others if first and threat.norm == first.norm and threat.label in same]

    def attacked(conditions: Sequence[ConditionSpec]) -> dict[int, Scores]:
        return worst_by_seed(table, model.label, conditions, images)

    clean = [condition for condition in table.conditions if condition.kind == "clean"]
    return Scored(
        model,
        clean=worst_by_seed(table, model.label, clean, plan.images[clean[0].label] if clean else None),
        robust=attacked(plan.threats[first] if first else ()),
        elsewhere={
            threat.label: attacked(plan.threats[threat]) for threat in sorted(alike, key=lambda threat: threat.eps)
        },
    )


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
        group.sort(key=lambda item: -balanced_mean(item[1]))
        leaders = tie_leaders([found for _, found in group])
        ranks = [f"{len(ranked) + leader + 1}{'=' if leaders.count(leader) > 1 else ''}" for leader in leaders]
        ranked += [replace(row, rank=rank) for (row, _), rank in zip(group, ranks, strict=True)]
    return (*ranked, *(row for row, found in scored if found is None))
