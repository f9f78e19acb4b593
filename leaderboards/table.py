"""The cells of one data set in one grid, as a table of models by conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from robbench.core.threat_model import format_eps, precedence, size_name
from robbench.results.schema import CellResult, ConditionSpec, DatasetSpec, ModelSpec, Outcome, Record

Status = Literal["done", "failed", "unsupported", "missing"]


@dataclass(frozen=True)
class ThreatModel:
    """What one worst case is taken over: any change of at most ``eps`` in a norm, towards whatever wrong class."""

    norm: str
    eps: float

    @property
    def label(self) -> str:
        """As in ``Linf 8/255``."""
        return f"{self.norm.capitalize()} {format_eps(self.eps)}"

    @property
    def asked(self) -> str:
        """As grids ask to rank by it: ``linf@8/255``."""
        return size_name(self.norm, self.eps)


Threats: TypeAlias = Mapping[ThreatModel, Sequence[ConditionSpec]]
"""The conditions whose worst case each threat model is."""


@dataclass(frozen=True)
class Table:
    """Cells in rows and columns, both in the order in which they are first seen.

    Attributes:
        dataset: The data set, the same for all.
        models: The rows.
        conditions: The columns.
        checks: Conditions that only look into some rows or samples.
        corruptions: Those of the suite of common corruptions, which boards show together.
        places: Cells by seed, by labels of model and condition.
        seeds: The seeds of which a row has any cell, rising, by label.
    """

    dataset: DatasetSpec
    models: tuple[ModelSpec, ...]
    conditions: tuple[ConditionSpec, ...]
    checks: tuple[ConditionSpec, ...]
    corruptions: tuple[ConditionSpec, ...]
    places: Mapping[tuple[str, str], Mapping[int, CellResult]]
    seeds: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, cells: Sequence[CellResult]) -> Table:
        """The table of some cells.

        Raises:
            ValueError: If there are none, they are of several data sets, one is there twice, or a finished one lacks
                its outcome.
        """
        if not cells:
            raise ValueError("a board needs at least one cell")
        specs = [record.spec for record, _ in cells]
        if len({(spec.dataset.label, spec.dataset.fingerprint) for spec in specs}) > 1:
            raise ValueError("the cells of a board must be of one data set")
        models: dict[str, ModelSpec] = {}
        conditions: dict[str, ConditionSpec] = {}
        places: dict[tuple[str, str], dict[int, CellResult]] = {}
        seeds: dict[str, set[int]] = {}
        for spec, cell in zip(specs, cells, strict=True):
            row, column = spec.model.label, spec.condition.label
            place = places.setdefault((row, column), {})
            if spec.seed in place:
                raise ValueError(f"two cells for {row}, {column}, seed {spec.seed}")
            if cell[0].status == "done" and cell[1] is None:
                raise ValueError(f"cell {cell[0].key} is done but has no outcome")
            place[spec.seed] = cell
            models.setdefault(row, spec.model)
            conditions.setdefault(column, spec.condition)
            seeds.setdefault(row, set()).add(spec.seed)
        groups: dict[str, list[ConditionSpec]] = {"column": [], "check": [], "corruption": []}
        for condition in conditions.values():
            groups[_group(condition)].append(condition)
        return cls(
            specs[0].dataset,
            tuple(models.values()),
            tuple(groups["column"]),
            tuple(groups["check"]),
            tuple(groups["corruption"]),
            places,
            {label: tuple(sorted(found)) for label, found in seeds.items()},
        )

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.dataset.class_names)

    def records(self, model: str | None = None, condition: str | None = None) -> list[Record]:
        """The records of a row, a column, a place or the whole table, by row, column and seed."""
        rows = [model] if model is not None else [spec.label for spec in self.models]
        every = [spec.label for spec in (*self.conditions, *self.checks, *self.corruptions)]
        columns = [condition] if condition is not None else every
        places = [self.places.get((row, column), {}) for row in rows for column in columns]
        return [place[seed][0] for place in places for seed in sorted(place)]

    def outcomes(self, model: str, condition: str) -> list[Outcome] | None:
        """The outcomes of a place by seed, or None unless it is done for every seed of the row."""
        place = self.places.get((model, condition), {})
        cells = [place.get(seed) for seed in self.seeds[model]]
        done = [cell[1] for cell in cells if cell is not None and cell[0].status == "done" and cell[1] is not None]
        return done if len(done) == len(cells) else None

    def status(self, model: str, condition: str) -> tuple[Status, str]:
        """How a place stands over all seeds of the row, and why where it is not done; one bad seed is enough."""
        place = self.places.get((model, condition), {})
        troubles: dict[Status, str] = {}
        for seed in self.seeds[model]:
            cell = place.get(seed)
            if cell is None:
                troubles.setdefault("missing", f"seed {seed}: not run")
            elif cell[0].status != "done":
                troubles.setdefault(cell[0].status, f"seed {seed}: {cell[0].reason or 'no reason given'}")
        order: tuple[Status, ...] = ("failed", "unsupported", "missing")
        return next(((status, troubles[status]) for status in order if status in troubles), ("done", ""))

    def settings(self) -> dict[str, list[Any] | dict[str, list[str]]]:
        """Protocols, precisions, devices, seeds and versions of libraries: all that occur."""
        records = self.records()
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

    def threats(self, rank_by: str = "") -> dict[ThreatModel, tuple[ConditionSpec, ...]]:
        """The threat models with the conditions whose worst case each is, the one that ranks first.

        These are attacks alone and within a ball, untargeted or towards all targets in turn, that are supported for any
        row at all. The data set's reference eps come before others, Linf before L2, L1 and L0.

        Args:
            rank_by: The one that comes before all others where it is there, as ``linf@8/255``.
        """
        found: dict[ThreatModel, list[ConditionSpec]] = {}
        for condition in self.conditions:
            limits = condition.ranks_within
            if limits is not None:
                statuses = {record.status for record in self.records(condition=condition.label)}
                if statuses != {"unsupported"}:
                    found.setdefault(ThreatModel(*limits), []).append(condition)
        reference = self.dataset.reference
        order = sorted(
            found, key=lambda threat: (threat.asked != rank_by, precedence(threat.norm, threat.eps, reference))
        )
        return {threat: tuple(found[threat]) for threat in order}


def _group(condition: ConditionSpec) -> str:
    if condition.check:
        return "check"
    return "corruption" if [stage.name for stage in condition.stages] == ["corruption"] else "column"


def is_smallest_change(condition: ConditionSpec) -> bool:
    """Whether it is a single attack that looks for the smallest change: its success says nothing without the size."""
    return condition.kind == "attack" and condition.stages[0].norm != "none" and not condition.stages[0].bounded


def is_audited(conditions: Sequence[ConditionSpec]) -> bool:
    """Whether any of the attacks follows margins between scores by gradients for at least 20 steps."""
    return any(stage.audits for condition in conditions for stage in condition.stages)
