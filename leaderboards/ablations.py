"""Effects of single changes: rows that differ in one part, compared sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from robbench.evaluation.statistics import SEEDS, Scores, combine, compare, holm
from robbench.results.schema import Measure, ModelSpec

Part = Literal["objective", "defenses", "balancer"]
PARTS: tuple[Part, ...] = ("objective", "defenses", "balancer")


BySeed: TypeAlias = Mapping[int, Scores]
"""The scores of a row's samples, by training seed."""


@dataclass(frozen=True)
class Change:
    """How much a change adds to a balanced figure.

    Attributes:
        added: On the seeds that both rows have. Its interval is over seeds and images; of fewer than ``SEEDS`` seeds,
            over images alone, for these checkpoints.
        by_seed: The same seed by seed.
        p: Two-sided, that the methods differ; of pairs adjusted for all pairs of the board. None of fewer seeds, which
            tell nothing of methods.
    """

    added: Measure
    by_seed: tuple[float, ...]
    p: float | None


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in one part alone.

    Attributes:
        part: Which.
        first: Label of the row without the change: the one without defense or balancer, or the objective listed first.
        second: Label of the row with it.
        before: What the part is in the first row.
        after: What it is in the second.
        clean: What the change adds to clean accuracy; None where either row lacks it.
        robust: What it adds to the worst-case robust accuracy that ranks, or stands beside clean accuracy that does.
        elsewhere: The same at other sizes of that norm, the smallest first, by threat model.
    """

    part: Part
    first: str
    second: str
    before: str
    after: str
    clean: Change | None
    robust: Change | None
    elsewhere: Mapping[str, Change | None]

    def changes(self, threat: str | None) -> dict[str, Change | None]:
        """All of them by name: clean, then the worst cases, that of ``robust`` last."""
        worst = {f"Worst case {size}": change for size, change in self.elsewhere.items()}
        last = {f"Worst case {threat}": self.robust} if threat else {}
        return {"Clean, balanced": self.clean, **worst, **last}


@dataclass(frozen=True)
class Scored:
    """A row with its samples' scores: clean, in the worst case that ranks, at other sizes; empty where it lacks them.

    Other sizes are those at which all ranking attacks were run: weaker ones give no worst case to compare.
    """

    model: ModelSpec
    clean: BySeed
    robust: BySeed
    elsewhere: Mapping[str, BySeed]


def pairs(rows: Sequence[Scored], flagged: Collection[str] = ()) -> tuple[Pair, ...]:
    """All pairs of rows that differ in one part alone; p values of a figure are adjusted over them (Holm).

    Intervals are not adjusted, so that an adjusted p can be above 0.05 where the interval excludes 0.

    Args:
        rows: In the order of the grid.
        flagged: Labels of rows whose figures are not to be compared.
    """
    every = (pair for part in PARTS for pair in _of_part(rows, part))
    found = [pair for pair in every if pair.first not in flagged and pair.second not in flagged]
    clean = _adjusted([pair.clean for pair in found])
    robust = _adjusted([pair.robust for pair in found])
    sizes = found[0].elsewhere if found else ()
    elsewhere = {size: _adjusted([pair.elsewhere[size] for pair in found]) for size in sizes}
    return tuple(
        replace(
            pair, clean=clean[at], robust=robust[at], elsewhere={size: elsewhere[size][at] for size in pair.elsewhere}
        )
        for at, pair in enumerate(found)
    )


def _adjusted(changes: Sequence[Change | None]) -> list[Change | None]:
    adjusted = iter(holm([change.p for change in changes if change and change.p is not None]))
    return [replace(change, p=next(adjusted)) if change and change.p is not None else change for change in changes]


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
    return Pair(
        part=part,
        first=first.model.label,
        second=second.model.label,
        before=_text(first, part),
        after=_text(second, part),
        clean=change(first.clean, second.clean),
        robust=change(first.robust, second.robust),
        elsewhere={threat: change(found, second.elsewhere[threat]) for threat, found in first.elsewhere.items()},
    )


def change(first: BySeed, second: BySeed) -> Change | None:
    """What the second row adds to the first on the seeds that both have; None without any."""
    seeds = sorted(first.keys() & second.keys())
    found = compare([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None
    if found is None:
        return None
    return Change(found.added, found.by_seed, found.p if len(seeds) >= SEEDS else None)


def margin(first: BySeed, second: BySeed) -> Change | None:
    """How far the second row lies above the first: as ``change``, but where few seeds are shared over all of each."""
    if len(first.keys() & second.keys()) < SEEDS and first and second:
        first, second = ({0: combine(list(row.values()), np.mean)} for row in (first, second))
    return change(first, second)
