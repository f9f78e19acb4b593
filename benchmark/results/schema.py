"""What a cell leaves behind: its outcome (arrays, one entry per sample) and its record (JSON). Needs no torch."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 2

Kind = Literal["clean", "natural", "attack", "chain"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def dumps(value: object) -> str:
    """JSON for people and for comparing: sorted keys, indented, a newline at the end; not-a-number is refused."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def digest(value: object) -> str:
    """A 20-digit hexadecimal address of a value: SHA-256 of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Outcome:
    """The arrays of one cell, one entry per test sample, in the order of the samples' ids.

    Attributes:
        ids: Sample ids, shape ``(N,)``.
        labels: True classes, shape ``(N,)``.
        clean: Hard decisions on the unchanged images, shape ``(N,)``.
        final: Hard decisions after the condition, shape ``(N,)``; a sample that was not attacked keeps its clean one.
        rounded: As ``final``, on the attacked images rounded to 8 bits, shape ``(N,)``.
        attempted: Which samples the condition was applied to, bool, shape ``(N,)``.
        targets: The target class at which ``final`` was reached, -1 where there is none, shape ``(N,)``.
        draws: Hard decisions after each independent random draw, shape ``(N, D)``; the first column is ``final``.
            D is 0 for conditions that are not random transforms.
        every_target: For conditions that try all targets in turn, the decision after each, shape ``(N, K)`` by target,
            -1 at the true class and where nothing was tried; otherwise shape ``(N, 0)``.
        linf, l2, l1, l0: Norms of the whole change, float64, shape ``(N,)``.
        forwards, backwards: Passes spent, float64, shape ``(N,)``; fractions where an attack's calls could not be told
            apart by sample.
        scored: Arg max of the differentiable scores on the changed image, shape ``(N,)``; ``final`` where nobody
            looked.
        flat: Whether the input gradient at the unchanged image is exactly zero under both cross-entropy and margin
            loss, bool, shape ``(N,)``; measured in the clean condition alone.
    """

    ids: Ints
    labels: Ints
    clean: Ints
    final: Ints
    rounded: Ints
    attempted: NDArray[np.bool_]
    targets: Ints
    draws: Ints
    every_target: Ints
    linf: Floats
    l2: Floats
    l1: Floats
    l0: Floats
    forwards: Floats
    backwards: Floats
    scored: Ints
    flat: NDArray[np.bool_]
    num_classes: int
    kind: Kind

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ids)

    @property
    def robust(self) -> NDArray[np.bool_]:
        """Right on the unchanged image and right, or not brought to a target, after the condition; shape ``(N,)``.

        For natural perturbations, which have no adversary, right after the condition alone.
        """
        right: NDArray[np.bool_] = np.equal(self.final, self.labels)
        return right if self.kind == "natural" else right & np.equal(self.clean, self.labels)

    def to_bytes(self) -> bytes:
        """The outcome as an uncompressed npz, the same bytes for the same arrays."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def sha256(self) -> str:
        """The hash that a record keeps of its outcome."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        """The outcome that ``to_bytes`` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        # Schema 1 did not have these.
        values.setdefault("scored", values["final"])
        values.setdefault("flat", np.zeros(len(values["ids"]), dtype=np.bool_))
        values["num_classes"] = int(values["num_classes"])
        values["kind"] = str(values["kind"])
        return cls(**values)


class Measure(NamedTuple):
    """A figure with what it rests on.

    Attributes:
        value: The figure, unrounded.
        low: Lower end of its 95 % interval, or None where none is defined.
        high: Upper end.
        n: Number of samples.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartSpec(_Model):
    """A component as it was chosen."""

    name: str
    label: str
    version: int
    source: str | None = None
    parameters: dict[str, Any]


class StageSpec(PartSpec):
    """One attack of a condition."""

    norm: str
    eps: float | None
    white_box: bool
    black_box: bool = False
    margin_loss: bool = False
    gradient_steps: int = 0
    through_peers: bool = False
    bounded: bool
    global_state: bool


class ConditionSpec(_Model):
    """A column of a board."""

    label: str
    kind: Kind
    stages: tuple[StageSpec, ...] = ()
    target: str | None = None
    draws: int = 0
    sample: int | None = None
    check: bool = Field(default=False, description="looks into some rows or samples; has no part in the ranking")
    survivors: bool = Field(default=False, description="samples are drawn among those that the other attacks left")
    undefended: bool = Field(default=False, description="run on the model without its inference-time defenses")


class DatasetSpec(PartSpec):
    """A data set as it was used."""

    fingerprint: str
    class_names: tuple[str, ...]
    counts: dict[str, tuple[int, ...]] = Field(description="images per class in train, validation, test, gallery")
    duplicates: int
    crossing: int = Field(description="test images that are equal to a training or validation image")
    eps: dict[str, tuple[float, ...]]
    reference: dict[str, float]


class ModelSpec(_Model):
    """A row of a board: how a model was trained."""

    label: str
    architecture: PartSpec
    objective: PartSpec
    balancer: PartSpec
    defenses: tuple[PartSpec, ...]
    recipe: dict[str, Any]
    start: str | None = Field(default=None, description="label of the model it was warm-started from")


class CellSpec(_Model):
    """Everything that can change a cell's result."""

    dataset: DatasetSpec
    model: ModelSpec
    model_key: str
    condition: ConditionSpec
    seed: int
    precision: str
    device: str
    protocol: int


class Costs(_Model):
    """Passes that this cell alone spent, summed over samples."""

    forwards: float = 0.0
    backwards: float = 0.0


class Training(_Model):
    """What went into a cell's model, charged to the model and not to any of its cells.

    Attributes:
        images: Size of the training set, what balancers added or left out included.
        epochs, steps: Passes over it, and optimizer steps.
        forwards, backwards: Images that went through the network either way.
        validation_images: Size of the validation set.
        validation_accuracy: Share of them that the model gets right.
        validation_balanced_accuracy: The same, each class counting alike.
    """

    images: int
    epochs: int
    steps: int
    forwards: float
    backwards: float
    validation_images: int
    validation_accuracy: float
    validation_balanced_accuracy: float

    @classmethod
    def of(cls, info: dict[str, Any]) -> Training:
        """What a model's ``model.json`` says of it."""
        kept = info.get("kept", info["last"])
        return cls(
            images=info["training_images"],
            epochs=info["epochs"],
            steps=info["steps"],
            forwards=info["costs"]["forwards"],
            backwards=info["costs"]["backwards"],
            validation_images=sum(info["dataset"]["counts"]["validation"]),
            validation_accuracy=kept["validation_accuracy"],
            validation_balanced_accuracy=kept["validation_balanced_accuracy"],
        )


class Record(_Model):
    """A cell's metrics, costs and provenance."""

    schema_version: int = SCHEMA
    key: str
    status: Literal["done", "failed", "unsupported"]
    reason: str | None = Field(default=None, description="the error, or why the condition is not supported")
    spec: CellSpec
    metrics: dict[str, Measure] = {}
    metrics_digest: str = ""
    confusion: tuple[tuple[int, ...], ...] = Field(default=(), description="counts, true class by decision")
    costs: Costs = Costs()
    training: Training | None = Field(default=None, description="what went into its model; None where it has none")
    traits: tuple[str, ...] = Field(default=(), description="what was observed of the model that matters to attacks")
    flags: dict[str, str] = Field(default={}, description="blocking audit flags, each with what was found")
    cautions: dict[str, str] = Field(default={}, description="audit notes that do not block, each with its remedy")
    notes: tuple[str, ...] = ()
    outcome_sha256: str | None = None
    provenance: dict[str, Any] = {}
    timings: dict[str, Any] = {}

    def to_json(self) -> str:
        """The record as indented JSON with sorted keys, ending in a newline."""
        return dumps(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record, migrating older schemas.

        Raises:
            ValueError: If it is not a record, or from a newer robbench.
        """
        return cls.model_validate(_migrate(json.loads(text)))


class Reference(_Model):
    """A figure from elsewhere to set beside a board's own.

    Attributes:
        row: Label of the row.
        condition: Label of the condition.
        figure: ``accuracy``, ``macro_f1``, or ``recall/`` and the name of a class.
        value: What was found there, a share between 0 and 1.
        remark: What differs between there and here.
    """

    row: str
    condition: str = "clean"
    figure: str = "accuracy"
    value: float = Field(ge=0, le=1)
    remark: str = ""


class BoardNote(_Model):
    """What a board says that does not follow from its records; kept beside it as ``board.json``.

    Attributes:
        grid: Name of the grid.
        title: The board's heading.
        about: Paragraphs of plain text, divided by empty lines: what to know before reading.
        references: Figures from elsewhere.
        differences: Paragraphs of plain text: why the board's figures differ from those.
    """

    grid: str
    title: str
    about: str = ""
    references: tuple[Reference, ...] = ()
    differences: str = ""

    def to_json(self) -> str:
        """The note as indented JSON, ending in a newline."""
        return dumps(self.model_dump(mode="json"))


def _migrate(data: Any) -> Any:
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(f"record schema {schema!r} is not known to this robbench (it knows up to {SCHEMA})")
    if schema < 2:
        try:
            for stage in data["spec"]["condition"].get("stages", ()):
                steps = stage["parameters"].get("steps", 1)
                stage["gradient_steps"] = (steps if isinstance(steps, int) else 1) if stage["white_box"] else 0
            data["flags"] = dict.fromkeys(data.get("flags", ()), "")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of schema {schema}: {error!r}") from None
        data["schema_version"] = SCHEMA
    return data
