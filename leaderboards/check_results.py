"""What checks found: attacks on some rows or samples that have no part in the ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robbench.evaluation.statistics import Scores, combine
from robbench.leaderboards.aggregates import Estimate, rates, scores
from robbench.leaderboards.table import Status, Table, ThreatModel, Threats
from robbench.results.schema import ConditionSpec, Outcome


@dataclass(frozen=True)
class Checked:
    """One check of one row, with what the row's other attacks left of the very same samples.

    Attributes:
        status: ``done``, or what is wrong with at least one seed.
        reason: Why it is not done.
        left: Share of samples that the check leaves right.
        others: Share that the attacks which rank leave, in the same threat model; None where there are none.
        both: Share that neither changes.
        passes: Forward and backward passes that the check spent per sample.
        other_passes: Those that the ranking attacks spent on the same samples.
        keys: The records' keys by seed.
    """

    status: Status
    reason: str = ""
    left: Estimate | None = None
    others: Estimate | None = None
    both: Estimate | None = None
    passes: tuple[float, float] | None = None
    other_passes: tuple[float, float] | None = None
    keys: Mapping[str, str] | None = None

    @property
    def found(self) -> int | None:
        """Samples that the check alone changes, over all seeds together."""
        if self.others is None or self.both is None:
            return None
        drops = [before - after for before, after in zip(self.others.seeds, self.both.seeds, strict=True)]
        return round(sum(drops) * self.both.n)


def checked(table: Table, model: str, check: ConditionSpec, threats: Threats) -> Checked | None:
    """What a check found on a row, or None where it is not for that row.

    Args:
        table: The cells.
        model: The row's label.
        check: The check.
        threats: The conditions that rank, by threat model.
    """
    records = table.records(model, check.label)
    if not records:
        return None
    status, reason = table.status(model, check.label)
    keys = {str(record.spec.seed): record.key for record in records}
    outcomes = table.outcomes(model, check.label)
    left = _rates(table, check, [scores(part) for part in outcomes]) if outcomes else None
    if outcomes is None or left is None:
        return Checked(status, reason, keys=keys)
    stage = check.stages[0]
    ranking: Sequence[ConditionSpec] = ()
    if stage.eps is not None and not check.undefended:
        ranking = threats.get(ThreatModel(stage.norm, stage.eps), ())
    done = [found for spec in ranking if (found := table.outcomes(model, spec.label)) is not None]
    others = both = other_passes = None
    if done and len(done) == len(ranking):
        parts = list(zip(outcomes, *done, strict=True))
        others = _rates(table, check, [_worst(part[1:], part[0]) for part in parts])
        both = _rates(table, check, [_worst(part, part[0]) for part in parts])
        other_passes = _passes(outcomes, [part[1:] for part in parts])
    return Checked(
        status,
        left=left,
        others=others,
        both=both,
        passes=_passes(outcomes, [[part] for part in outcomes]),
        other_passes=other_passes,
        keys=keys,
    )


def _rates(table: Table, check: ConditionSpec, by_seed: Sequence[Scores]) -> Estimate | None:
    """The share over the seeds; where each seed has samples of its own, as for survivors, over all of them together."""
    if check.survivors:
        apart = [part.ids + seed * 2**40 for seed, part in enumerate(by_seed)]
        pooled = [np.concatenate(parts) for parts in zip(*((p.labels, p.values) for p in by_seed), strict=True)]
        by_seed = [Scores(np.concatenate(apart), pooled[0], pooled[1])]
    found = rates(by_seed, table.num_classes)
    return found[0].share if found else None


def _worst(outcomes: Sequence[Outcome], of: Outcome) -> Scores:
    """Per sample of one outcome, whether it survives all of them."""
    return combine([scores(of), *(scores(outcome) for outcome in outcomes)], lambda values, axis: values[1:].min(axis))


def _passes(of: Sequence[Outcome], by_seed: Sequence[Sequence[Outcome]]) -> tuple[float, float]:
    """Passes that some attacks spent, by seed, per sample of the outcomes of a check."""
    spent = np.zeros(2)
    for check, outcomes in zip(of, by_seed, strict=True):
        for outcome in outcomes:
            shared = np.isin(outcome.ids, check.ids)
            spent += outcome.forwards[shared].sum(), outcome.backwards[shared].sum()
    forwards, backwards = (spent / max(1, sum(map(len, of)))).tolist()
    return forwards, backwards
