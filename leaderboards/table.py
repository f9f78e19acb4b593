"""The cells of one data set in one grid, as a table of models by conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from robbench.records import ConditionSpec, DatasetSpec, ModelSpec, Outcome, Record
from robbench.threat import NORMS, format_eps

Cell: TypeAlias = tuple[Record, Outcome | None]
Status = Literal["done", "failed", "unsupported", "missing"]

AUDIT_STEPS = 20


@dataclass(frozen=True)
class ThreatModel:
    """What one worst case is taken over: any change of at most ``eps`` in a norm, towards whatever wrong class."""

    norm: str
    eps: float

    @property
    def label(self) -> str:
        """As in ``Linf 8/255``."""
        return f"{self.norm.capitalize()} {format_eps(self.eps)}"


@dataclass(frozen=True)
class Table:
    """Cells in rows and columns, both in the order in which they are first seen.

    Attributes:
        dataset: The data set, the same for all.
        models: The rows.
        conditions: The columns.
        cells: Cells by model, condition and seed.
    """

    dataset: DatasetSpec
    models: tuple[ModelSpec, ...]
    conditions: tuple[ConditionSpec, ...]
    cells: Mapping[tuple[str, str, int], Cell]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Table:
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
        placed: dict[tuple[str, str, int], Cell] = {}
        for record, outcome in cells:
            place = (record.spec.model.label, record.spec.condition.label, record.spec.seed)
            if place in placed:
                raise ValueError(f"two cells for model, condition and seed {place}")
            if record.status == "done" and outcome is None:
                raise ValueError(f"cell {record.key} is done but has no outcome")
            placed[place] = (record, outcome)
        models = {spec.model.label: spec.model for spec in reversed(specs)}
        conditions = {spec.condition.label: spec.condition for spec in reversed(specs)}
        return cls(
            specs[0].dataset,
            tuple(models[label] for label in dict.fromkeys(spec.model.label for spec in specs)),
            tuple(conditions[label] for label in dict.fromkeys(spec.condition.label for spec in specs)),
            placed,
        )

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.dataset.class_names)

    def seeds(self, model: str) -> tuple[int, ...]:
        """The seeds of which a row has any cell, rising."""
        return tuple(sorted({seed for label, _, seed in self.cells if label == model}))

    def records(self, model: str | None = None, condition: str | None = None) -> list[Record]:
        """Records of a row, a column or a place of the table, by column and seed."""
        order = {spec.label: place for place, spec in enumerate(self.conditions)}
        wanted = [
            (order[place[1]], place[2], cell[0])
            for place, cell in self.cells.items()
            if model in (None, place[0]) and condition in (None, place[1])
        ]
        return [record for _, _, record in sorted(wanted, key=lambda item: item[:2])]

    def outcomes(self, model: str, condition: str) -> list[Outcome] | None:
        """The outcomes of a place by seed, or None unless it is done for every seed of the row."""
        found = [self.cells.get((model, condition, seed), (None, None))[1] for seed in self.seeds(model)]
        done = [outcome for outcome in found if outcome is not None]
        return done if len(done) == len(found) and self.status(model, condition)[0] == "done" else None

    def status(self, model: str, condition: str) -> tuple[Status, str]:
        """How a place stands over all seeds of the row, and why where it is not done; one bad seed is enough."""
        troubles: dict[Status, str] = {}
        for seed in self.seeds(model):
            cell = self.cells.get((model, condition, seed))
            state: Status = cell[0].status if cell else "missing"
            reason = (cell[0].reason or "no reason given") if cell else "not run"
            if state != "done":
                troubles.setdefault(state, f"seed {seed}: {reason}")
        for state in ("failed", "unsupported", "missing"):
            if state in troubles:
                return state, troubles[state]
        return "done", ""

    def threats(self) -> dict[ThreatModel, tuple[ConditionSpec, ...]]:
        """The threat models with the conditions whose worst case each is, the one that ranks first.

        These are attacks alone and within a ball, untargeted or towards all targets in turn, that are supported for any
        row at all. The data set's reference eps come before others, Linf before L2, L1 and L0.
        """
        found: dict[ThreatModel, list[ConditionSpec]] = {}
        for condition in self.conditions:
            if condition.kind == "attack" and condition.target in (None, "all") and condition.stages[0].bounded:
                stage = condition.stages[0]
                statuses = {record.status for record in self.records(condition=condition.label)}
                if stage.eps is not None and statuses != {"unsupported"}:
                    found.setdefault(ThreatModel(stage.norm, stage.eps), []).append(condition)
        return {threat: tuple(found[threat]) for threat in sorted(found, key=self._precedence)}

    def _precedence(self, threat: ThreatModel) -> tuple[bool, int, float, float]:
        reference = self.dataset.reference.get(threat.norm, 0.0)
        return (
            threat.eps != reference,
            [str(norm) for norm in NORMS].index(threat.norm),
            abs(threat.eps - reference),
            threat.eps,
        )


def is_audited(conditions: Sequence[ConditionSpec]) -> bool:
    """Whether any of the attacks uses gradients for at least 20 steps."""
    return any(
        stage.white_box and stage.parameters.get("steps", 1) >= AUDIT_STEPS
        for condition in conditions
        for stage in condition.stages
    )
