"""What a single change does: rows that differ in one part of their making, compared sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from robbench.records import Measure, ModelSpec
from robbench.statistics import Scores, combine, holm, mean_difference, paired_difference, paired_p

Part = Literal["objective", "defenses", "balancer"]
PARTS: tuple[Part, ...] = ("objective", "defenses", "balancer")


@dataclass(frozen=True)
class Change:
    """How much a change adds to a worst case.

    Attributes:
        added: To the balanced figure, on the seeds that both rows have.
        by_seed: The same seed by seed.
    """

    added: Measure
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in one part alone.

    Attributes:
        part: Which.
        first: Label of the row without the change: the one without defense or balancer, or the objective listed first.
        second: Label of the row with it.
        before: What the part is in the first row.
        after: What it is in the second.
        clean: How much balanced clean accuracy the change adds, on the seeds that both rows have; None where either
            lacks it.
        robust: The same of what ranks.
        p: Of the latter, two-sided, adjusted for all pairs of the board.
        elsewhere: The same as ``robust`` at other sizes of the norm that ranks, the smallest first, by threat model.
    """

    part: Part
    first: str
    second: str
    before: str
    after: str
    clean: Measure | None
    robust: Change | None
    p: float | None
    elsewhere: Mapping[str, Change]


BySeed: TypeAlias = Mapping[int, Scores]


@dataclass(frozen=True)
class Scored:
    """A row with its samples' scores by seed: unchanged, in what ranks, at other sizes; empty where it lacks them."""

    model: ModelSpec
    clean: BySeed
    robust: BySeed
    elsewhere: Mapping[str, BySeed]


def pairs(rows: Sequence[Scored]) -> tuple[Pair, ...]:
    """All pairs of rows that differ in one part alone, p values adjusted over them (Holm)."""
    found = [pair for part in PARTS for pair in _of_part(rows, part)]
    known = [place for place, pair in enumerate(found) if pair.p is not None]
    adjusted = holm([p for pair in found if (p := pair.p) is not None])
    for place, p in zip(known, adjusted, strict=True):
        found[place] = replace(found[place], p=p)
    return tuple(found)


def _of_part(rows: Sequence[Scored], part: Part) -> Iterator[Pair]:
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(row.model.model_dump_json(exclude={part, "label"}), []).append(row)
    for group in groups.values():
        usual = rows[0].model.objective if part == "objective" else None
        bare = [row for row in group if (row.model.objective == usual if usual else _text(row, part) == "none")]
        for row in group if bare else ():
            if row is not bare[0]:
                yield _pair(part, bare[0], row)


def _text(row: Scored, part: Part) -> str:
    if part == "defenses":
        return "+".join(defense.label for defense in row.model.defenses) or "none"
    return str(getattr(row.model, part).label)


def _pair(part: Part, first: Scored, second: Scored) -> Pair:
    clean, robust = _both(first.clean, second.clean), _both(first.robust, second.robust)
    others = {threat: _change(found, second.elsewhere[threat]) for threat, found in first.elsewhere.items()}
    return Pair(
        part=part,
        first=first.model.label,
        second=second.model.label,
        before=_text(first, part),
        after=_text(second, part),
        clean=paired_difference(*clean) if clean else None,
        robust=_change(first.robust, second.robust),
        p=paired_p(*robust) if robust else None,
        elsewhere={threat: change for threat, change in others.items() if change},
    )


def _change(first: BySeed, second: BySeed) -> Change | None:
    both = _both(first, second)
    added = paired_difference(*both) if both else None
    differences = [mean_difference(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    return Change(added, tuple(found for found in differences if found is not None)) if added else None


def _both(first: BySeed, second: BySeed) -> tuple[Scores, Scores] | None:
    """Each sample's mean over the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return combine([first[seed] for seed in seeds], np.mean), combine([second[seed] for seed in seeds], np.mean)
