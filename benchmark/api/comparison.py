"""Two models under the same conditions, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import bdtr

from robbench.api.frames import ends
from robbench.api.loading import load
from robbench.api.report import Report
from robbench.core.errors import RequestError, did_you_mean
from robbench.evaluation import statistics
from robbench.evaluation.statistics import SEEDS, Scores, combine
from robbench.leaderboards.aggregates import on, rates
from robbench.leaderboards.comparison import worst_by_seed
from robbench.leaderboards.table import Table, Threats, is_smallest_change
from robbench.results.schema import ConditionSpec, Measure, digest

if TYPE_CHECKING:
    import pandas as pd

BySeed = Mapping[int, Scores]


@dataclass(frozen=True)
class ClassDifference:
    """The difference on the samples of one class; p values are not corrected for the number of classes.

    Attributes:
        name: The class.
        first: Accuracy of the first model.
        second: That of the second.
        difference: The second minus the first, with its 95 % interval and number of samples.
        p: Two-sided, of the same test.
    """

    name: str
    first: float
    second: float
    difference: Measure
    p: float


@dataclass(frozen=True)
class ComparedCondition:
    """Two models under one condition, or in one worst case, on the samples that both have.

    Attributes:
        condition: Its label; ``worst case Linf 8/255`` for a worst case, over the attacks that both have.
        first: Accuracy of the first model, averaged over classes: robust accuracy under an attack.
        second: That of the second.
        difference: The second minus the first, with its 95 % interval and number of samples.
        p: Two-sided, of the same test: below 0.05 exactly where the interval excludes 0.
        lost: Samples on which the second is worse: of single seeds those that only the first is right on (McNemar's b).
        won: Samples on which it is better (McNemar's c).
        mcnemar: McNemar's exact two-sided p: that of a fair coin for as unequal counts or more.
        classes: The difference class by class.
    """

    condition: str
    first: Measure
    second: Measure
    difference: Measure
    p: float
    lost: int
    won: int
    mcnemar: float
    classes: tuple[ClassDifference, ...]

    @property
    def drop(self) -> float:
        """How far the second lies below the first, as a share; negative where it lies above."""
        return -self.difference.value


@dataclass(frozen=True)
class Comparison:
    """By how much a second model exceeds a first one, condition by condition.

    Attributes:
        first: Name of the first model, with its board.
        second: Name of the second.
        conditions: What was compared; worst cases first, the one that ranks before all others.
        seeds: Training seeds that both have; with fewer than three it is about these checkpoints, not about methods.
        missing: What the first has and the second has no result of, each with why.
        notes: What else was not compared, and why.
        flags: Blocking audit flags of both, each with what was found.
    """

    first: str
    second: str
    conditions: tuple[ComparedCondition, ...]
    seeds: tuple[int, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    flags: tuple[Mapping[str, str], Mapping[str, str]]

    def __getitem__(self, condition: str) -> ComparedCondition:
        """One condition by its label.

        Raises:
            RequestError: If it was not compared.
        """
        known = {one.condition: one for one in self.conditions}
        if condition not in known:
            raise RequestError(f'"{condition}" was not compared; {did_you_mean(condition, known)}', "condition")
        return known[condition]

    @property
    def worst_drop(self) -> ComparedCondition:
        """The condition under which the second falls furthest behind the first.

        Example:
            >>> robbench.compare(before, after).worst_drop.drop
            0.031
        """
        return max(self.conditions, key=lambda one: one.drop)

    @property
    def about_methods(self) -> bool:
        """Whether it is about methods of training, and not about these checkpoints alone."""
        return len(self.seeds) >= SEEDS

    def to_frame(self) -> pd.DataFrame:
        """The comparison as a table: a line per condition, and one per condition and class.

        Returns:
            A table with the columns ``condition``, ``class`` (empty for all), ``n``, ``first``, ``second``,
            ``difference``, ``low``, ``high``, ``p``, ``lost``, ``won`` and ``mcnemar``; the last three for all classes
            together.
        """
        import pandas as pd

        lines: list[dict[str, Any]] = []
        for one in self.conditions:
            lines.append(
                {"condition": one.condition, "class": ""}
                | _line(one.first.value, one.second.value, one.difference, one.p)
                | {"lost": one.lost, "won": one.won, "mcnemar": one.mcnemar}
            )
            for part in one.classes:
                named = {"condition": one.condition, "class": part.name}
                lines.append(named | _line(part.first, part.second, part.difference, part.p))
        return pd.DataFrame(lines).astype({"lost": "Int64", "won": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, as ``robbench compare --json`` prints it."""
        plain = asdict(self)
        for one, line in zip(self.conditions, plain["conditions"], strict=True):
            line |= {name: getattr(one, name)._asdict() for name in ("first", "second", "difference")}
            for part, inner in zip(one.classes, line["classes"], strict=True):
                inner["difference"] = part.difference._asdict()
        return plain

    def summary(self) -> str:
        """The comparison as plain text in lines of at most 80 columns."""
        from robbench.api.comparison_text import summary

        return summary(self)

    def to_markdown(self) -> str:
        """The comparison as markdown: one sentence and one table."""
        from robbench.api.comparison_text import markdown

        return markdown(self)

    def __str__(self) -> str:
        """The summary."""
        return self.summary()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def compare(
    a: Report | str | Path, b: Report | str | Path, row_a: str | None = None, row_b: str | None = None
) -> Comparison:
    """Compare two models under every condition that both have, paired by sample.

    Difference, interval and p are of one test: balanced over classes, images drawn within each class; with three
    training seeds or more, seeds are drawn too. McNemar's exact test of the samples stands beside it.

    Args:
        a: The report of the first model, or the directory that it is in; see ``robbench.load``.
        b: That of the second; it may be the same.
        row_a: The first model; may be left out where its report has a single row.
        row_b: The second, likewise.

    Raises:
        RequestError: If a row is unknown, the data sets are not the same, or nothing can be compared.

    Example:
        >>> found = robbench.compare("before", "after")
        >>> found["worst case Linf 8/255"].difference
        Measure(value=-0.031, low=-0.052, high=-0.01, n=1000)
    """
    first, second = (side if isinstance(side, Report) else load(side) for side in (a, b))
    one = _Side(first, first.row(row_a, "row_a").label)
    other = _Side(second, second.row(row_b, "row_b").label)
    _check_data(first, second)
    seeds = tuple(seed for seed in one.seeds if seed in other.seeds)
    found: list[ComparedCondition] = []
    missing, notes = _differences(one, other)
    if not seeds:
        notes.append("The rows have no seed in common: means over their seeds are compared.")
    for label, before, after in _pairs(one, other):
        parts = one.by_seed(before), other.by_seed(after)
        if all(parts):
            names = one.table.dataset.class_names
            made = _compared(label, _chosen(parts[0], seeds), _chosen(parts[1], seeds), names)
            found += [made] if made else []
            notes += [] if made else [f"{label}: not compared; no sample is common to both"]
        elif parts[0]:
            missing[label] = other.trouble(after)
        else:
            notes.append(f"{label}: not compared; {one.row} has no result: {one.trouble(before)}")
    if not found and not missing:
        raise RequestError(" ".join([f"{one} and {other} have no condition in common.", *notes[:1]]))
    flags = first.flags(one.row), second.flags(other.row)
    return Comparison(str(one), str(other), tuple(found), seeds, missing, tuple(notes), flags)


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact two-sided p: how often a fair coin gives counts as unequal, or more (Psychometrika 12, 1947)."""
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


@dataclass(frozen=True)
class _Side:
    """A row of a report."""

    report: Report
    row: str

    def __str__(self) -> str:
        return f"{self.report.name} · {self.row}"

    @property
    def table(self) -> Table:
        return self.report.table

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.table.seeds[self.row]

    @property
    def threats(self) -> Threats:
        return self.table.threats(self.report.note.rank_by)

    def conditions(self) -> dict[str, ConditionSpec]:
        """What success means the same of whatever its size, by what identifies it; checks have no part in it."""
        columns = (*self.table.conditions, *self.table.corruptions)
        there = [spec for spec in columns if self.table.places.get((self.row, spec.label))]
        return {_identity(spec): spec for spec in there if not is_smallest_change(spec)}

    def by_seed(self, specs: Sequence[ConditionSpec]) -> BySeed:
        return worst_by_seed(self.table, self.row, specs, None)

    def trouble(self, specs: Sequence[ConditionSpec]) -> str:
        found = (self.table.status(self.row, spec.label) for spec in specs)
        return next((f"{status}: {reason}" for status, reason in found if status != "done"), "no sample")


def _check_data(first: Report, second: Report) -> None:
    one, other = first.table.dataset, second.table.dataset
    if (one.fingerprint, one.class_names) != (other.fingerprint, other.class_names):
        raise RequestError(
            f'"{first.name}" is of {one.label} ({one.fingerprint[:8]}), "{second.name}" of {other.label} '
            f"({other.fingerprint[:8]}): samples of other data cannot be paired"
        )


def _pairs(one: _Side, other: _Side) -> Iterator[tuple[str, list[ConditionSpec], list[ConditionSpec]]]:
    """What can be compared, with the conditions of both: worst cases, then conditions."""
    second = other.conditions()
    shared = {key: (spec, second[key]) for key, spec in one.conditions().items() if key in second}
    for threat, specs in one.threats.items():
        both = [pair for spec in specs if (pair := shared.get(_identity(spec)))]
        if both:
            yield f"worst case {threat.label}", [before for before, _ in both], [after for _, after in both]
    for before, after in shared.values():
        yield before.label, [before], [after]


def _differences(one: _Side, other: _Side) -> tuple[dict[str, str], list[str]]:
    """What the second lacks of what the first ranks by, and what else cannot be compared, each with why."""
    first, second = one.conditions(), other.conditions()
    missing: dict[str, str] = {}
    notes: list[str] = []
    for place, (threat, specs) in enumerate(one.threats.items()):
        own, others = ({_identity(spec): spec for spec in found} for found in (specs, other.threats.get(threat, ())))
        shared = [spec.label for key, spec in own.items() if key in others]
        if not shared and not place:
            missing[f"worst case {threat.label}"] = "none of its attacks was run"
        elif shared and own.keys() != others.keys():
            notes.append(f"worst case {threat.label}: over the attacks that both have, {', '.join(shared)}")
    labels = {spec.label: spec for key, spec in second.items() if key not in first}
    for key, spec in first.items():
        if key not in second:
            reason = _differing(spec, labels[spec.label]) if spec.label in labels else f"{other} does not have it"
            notes.append(f"{spec.label}: not compared; {reason}")
    return missing, notes


def _identity(spec: ConditionSpec) -> str:
    """What is done to a sample, whatever it is called and whichever samples it is done to."""
    stages = [
        [stage.name, stage.version, stage.source, stage.parameters, stage.norm, stage.eps] for stage in spec.stages
    ]
    return digest([stages, spec.target, spec.undefended, spec.draws])


def _differing(one: ConditionSpec, other: ConditionSpec) -> str:
    for before, after in zip(one.stages, other.stages, strict=False):
        if (before.name, before.version) != (after.name, after.version):
            return f"{before.name} has version {before.version} there and {after.version} here"
    return "its parameters differ"


def _chosen(by_seed: BySeed, seeds: Sequence[int]) -> list[Scores]:
    """The scores of the seeds that both have; the mean over all where they have none in common."""
    return [by_seed[seed] for seed in seeds] if seeds else [combine(list(by_seed.values()), np.mean)]


def _compared(label: str, first: list[Scores], second: list[Scores], names: Sequence[str]) -> ComparedCondition | None:
    ids = combine([*first, *second], np.mean).ids
    if not len(ids):
        return None
    one, other = ([on(part, ids) for part in parts] for parts in (first, second))
    difference = statistics.compare(one, other)
    rated = [rates(parts, len(names)) for parts in (one, other)]
    assert difference is not None
    (before, mean_before), (after, mean_after) = (made for made in rated if made is not None)
    lost, won = (int((sign * (mean_after.values - mean_before.values) > 1e-12).sum()) for sign in (-1, 1))
    classes = []
    for at in np.unique(mean_before.labels):
        part = statistics.compare([_of_class(each, at) for each in one], [_of_class(each, at) for each in other])
        shares = before.per_class[at], after.per_class[at]
        assert part is not None
        assert shares[0] is not None
        assert shares[1] is not None
        classes.append(ClassDifference(names[at], shares[0].value, shares[1].value, part.added, part.p))
    return ComparedCondition(
        condition=label,
        first=Measure(*ends(before.balanced)),
        second=Measure(*ends(after.balanced)),
        difference=difference.added,
        p=difference.p,
        lost=lost,
        won=won,
        mcnemar=mcnemar(lost, won),
        classes=tuple(classes),
    )


def _of_class(found: Scores, label: int) -> Scores:
    own = found.labels == label
    return Scores(found.ids[own], found.labels[own], found.values[own])


def _line(first: float, second: float, difference: Measure, p: float) -> dict[str, Any]:
    value, low, high, n = difference
    return {"n": n, "first": first, "second": second, "difference": value, "low": low, "high": high, "p": p}
