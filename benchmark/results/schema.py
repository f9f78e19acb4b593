"""What a cell leaves behind: its outcome (arrays, one entry per sample) and its record (JSON). Needs no torch."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from robbench.results.canonical_json import digest as digest
from robbench.results.canonical_json import dumps as dumps
from robbench.results.migration import migrated, row_name
from robbench.results.outcome import Bools as Bools
from robbench.results.outcome import ConditionKind as ConditionKind
from robbench.results.outcome import Floats as Floats
from robbench.results.outcome import Ints as Ints
from robbench.results.outcome import Outcome as Outcome

SCHEMA = 4

MANY_CLASSES = 50
"""Of more classes records and boards hold no confusion matrices, and pages show the hardest classes alone."""

AUDIT_STEPS = 20
"""Gradient steps on margins that an audited row has been attacked with, at least."""


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
    # The text under a key is its description in the JSON schema.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PartSpec(_Model):
    """A component as it was chosen."""

    name: str
    """Registered name."""
    label: str
    """Name with the hyperparameters that differ from its defaults, as it can be asked for again."""
    version: int
    """Raised when the component's results change."""
    source: str | None = None
    """Hash of the source of a plugin's component; none for built-in ones."""
    parameters: dict[str, Any]
    """Every hyperparameter by name."""


class StageSpec(PartSpec):
    """One attack of a condition."""

    norm: str
    """Norm of the threat model: linf, l2, l1, l0, or none for natural perturbations."""
    eps: float | None
    """Largest norm of the change, in units of a [0, 1] pixel; none where the attack is not limited."""
    white_box: bool
    """Whether the attack uses gradients."""
    black_box: bool = False
    """Whether the attack learns from scores or predictions without gradients."""
    losses: tuple[str, ...] = ()
    """The losses that the attack follows: ce (cross-entropy), margin, dlr (difference of logits ratio)."""
    gradient_steps: int = 0
    """Gradient steps in a row from one start."""
    averaged_draws: int = 1
    """Draws of a random model that gradients are averaged over."""
    through_peers: bool = False
    """Whether the attack works through other models of the grid (transfer)."""
    bounded: bool
    """Whether the attack takes an eps; otherwise it minimizes the change."""
    global_state: bool
    """Whether the attack draws from global random state, which it sets and restores."""

    @property
    def follows_margins(self) -> bool:
        """Whether it follows a loss on margins, which does not saturate where scores lie far apart."""
        return bool({"margin", "dlr"}.intersection(self.losses))

    @property
    def audits(self) -> bool:
        """Whether a row that it was run on is audited: it follows margins by gradients for long enough."""
        return self.white_box and self.follows_margins and self.gradient_steps >= AUDIT_STEPS


class CertificateSpec(PartSpec):
    """The method of a certify condition and what it was asked to prove."""

    norm: str
    """Norm of the threat model: linf, l2 or l1."""
    eps: float
    """The norm of the change that must be proved harmless, in units of a [0, 1] pixel."""


class ConditionSpec(_Model):
    """A column of a board."""

    label: str
    """What the column is called."""
    kind: ConditionKind
    """clean, natural (a perturbation without an adversary), attack (a single one), chain (of several), union (the worst
    case over several threat models), or certificate (a proof that no attack can succeed)."""
    stages: tuple[StageSpec, ...] = ()
    """The attacks in the order in which they are applied."""
    target: str | None = None
    """Rule for the target class: next, random, least-likely, all, or the name of a class; none if untargeted."""
    draws: int = 0
    """Independent random draws per sample."""
    sample: int | None = None
    """Size of the stratified subsample of the test set; none for all of it."""
    check: bool = False
    """Whether it only looks into some rows or samples; it has no part in the ranking."""
    survivors: bool = False
    """Whether samples are drawn among those that the other attacks left."""
    undefended: bool = False
    """Whether it is run on the model without its inference-time defenses."""
    union: tuple[tuple[str, float], ...] = ()
    """Norm and size of each threat model that it is the worst case over; of a union alone."""
    certificate: CertificateSpec | None = None
    """The method that proves; of a certificate alone."""

    @property
    def ranks_within(self) -> tuple[str, float] | None:
        """Norm and size of the threat model whose worst case it is part of, or None where it is part of none.

        That of an attack alone and within a ball, untargeted or towards all targets in turn, and no check.
        """
        if self.kind != "attack" or self.check or self.target not in (None, "all") or not self.stages[0].bounded:
            return None
        stage = self.stages[0]
        return None if stage.eps is None else (stage.norm, stage.eps)


class DatasetSpec(PartSpec):
    """A data set as it was used."""

    fingerprint: str
    """SHA-256 over images, labels, class names and test marks."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of their indices."""
    counts: dict[str, tuple[int, ...]]
    """Images per class in train, validation, test and gallery."""
    duplicates: int
    """Images that are equal to an earlier one, to the last bit."""
    crossing: int
    """Test images that are equal to a training or validation image."""
    remarks: tuple[str, ...] = ()
    """What to know of how its files were read, such as those that were not."""
    eps: dict[str, tuple[float, ...]]
    """Sizes of change at which the data set is attacked, by norm."""
    reference: dict[str, float]
    """The size of change per norm that boards rank by."""


class ExternalSpec(_Model):
    """A model that others trained."""

    identity: dict[str, Any]
    """What tells it from all others: hashes of weights and code, normalization, what it answers."""
    facts: dict[str, Any] = {}
    """What is known of it: format, number of parameters, license."""


class ModelSpec(_Model):
    """A row of a board: how a model was trained, or which one of others it is."""

    label: str
    """What the row is called."""
    architecture: PartSpec
    """The backbone's family."""
    objective: PartSpec
    """What the network is trained for, and how its output becomes a prediction."""
    balancer: PartSpec
    """What is done about unequal class counts."""
    defenses: tuple[PartSpec, ...]
    """The defenses, in the order in which they are applied."""
    recipe: dict[str, Any]
    """Every hyperparameter of the training recipe by name."""
    start: str | None = None
    """Label of the model whose weights it was warm-started from."""
    external: ExternalSpec | None = None
    """Where others trained it, in place of how; architecture and objective only name it then."""


class CellSpec(_Model):
    """Everything that can change a cell's result."""

    dataset: DatasetSpec
    """The data set."""
    model: ModelSpec
    """The model."""
    model_key: str
    """Key of the trained model in the store."""
    condition: ConditionSpec
    """The condition."""
    seed: int
    """Seed of training and attacks."""
    precision: str
    """Floating-point precision of training."""
    device: str
    """Device type: cpu or cuda."""
    protocol: int
    """Version of the protocol of training and evaluation."""
    start_key: str | None = None
    """What training starts from: the key of a model, or the name of published weights; older records lack it."""
    peers: tuple[str, ...] = ()
    """Keys of the other models that its attack works through."""
    needs: tuple[str, ...] = ()
    """Keys of the row's other cells that it rests on: those whose survivors its samples are drawn from, or whose worst
    case it is."""


class Costs(_Model):
    """Passes that this cell alone spent, summed over samples."""

    forwards: float = 0.0
    """Forward passes."""
    backwards: float = 0.0
    """Backward passes."""


class Training(_Model):
    """What went into a cell's model, charged to the model and not to any of its cells."""

    images: int
    """Size of the training set, what balancers added or left out included."""
    epochs: int
    """Passes over the training set."""
    steps: int
    """Optimizer steps."""
    forwards: float
    """Images that went forward through the network."""
    backwards: float
    """Images that went backward through the network."""
    validation_images: int
    """Size of the validation set."""
    validation_accuracy: float
    """Accuracy on the validation set."""
    validation_balanced_accuracy: float
    """Balanced accuracy on the validation set."""

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
    """Version of this schema; records of older ones are migrated on reading."""
    key: str
    """The cell's key: a hash of everything that can change its result."""
    status: Literal["done", "failed", "unsupported"]
    """Whether there is a result; a failed cell is tried again by the next run."""
    reason: str | None = None
    """The error, or why the condition is not supported."""
    spec: CellSpec
    """What was evaluated."""
    metrics: dict[str, Measure] = {}
    """Figures by name: value, lower and upper end of the 95 % interval, number of samples; name/3 is of class 3."""
    metrics_digest: str = ""
    """Hash of the metrics that were known, so that new ones are noticed."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Confusion matrix: counts, true class by prediction; of more than 50 classes none."""
    costs: Costs = Costs()
    """Passes that the cell spent."""
    training: Training | None = None
    """What went into its model; none where it has none."""
    parameters: int = 0
    """Of its model, with its inference-time defenses; 0 where they cannot be seen, and in older records."""
    multiply_adds: int = 0
    """Of one prediction, in convolutions and matrix products; likewise."""
    traits: tuple[str, ...] = ()
    """What was observed of the model that matters to attacks."""
    flags: dict[str, str] = {}
    """Blocking audit flags, each with what was found."""
    cautions: dict[str, str] = {}
    """Audit flags that do not block, each with its remedy."""
    notes: tuple[str, ...] = ()
    """What happened on the way, as text."""
    outcome_sha256: str | None = None
    """SHA-256 of the outcome's file; none where there is no outcome."""
    provenance: dict[str, Any] = {}
    """Versions, commit, machine, threads and plugins; no part of the key."""
    timings: dict[str, Any] = {}
    """Wall-clock seconds."""

    def to_json(self) -> str:
        """The record as indented JSON with sorted keys, ending in a newline."""
        return dumps(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record, migrating older schemas.

        Raises:
            ValueError: If it is not a record, or from a newer robbench.
        """
        return cls.from_data(json.loads(text))

    @classmethod
    def from_data(cls, data: object) -> Record:
        """Read a record from plain data; see ``from_json``."""
        return cls.model_validate(migrated(data, SCHEMA))


CellResult: TypeAlias = tuple[Record, Outcome | None]
"""A record with its outcome, None unless the cell is done."""


class Reference(_Model):
    """A published figure to compare a board's own with."""

    row: str
    """Label of the row."""
    condition: str = "clean"
    """Label of the condition."""
    figure: str = "accuracy"
    """accuracy, macro_f1, or recall/ and the name of a class."""
    value: float = Field(ge=0, le=1)
    """The published figure, a share between 0 and 1."""
    remark: str = ""
    """What differs between there and here."""

    @field_validator("row")
    @classmethod
    def _named_as_now(cls, row: str) -> str:
        return row_name(row)


class Bound(_Model):
    """A proved interval of a model's robust accuracy, from elsewhere."""

    row: str
    """Label of the row."""
    threat: str
    """Norm and size of change, as linf@0.1."""
    low: float = Field(default=0.0, ge=0, le=1)
    """The least share of all images that is robust; no attack can leave fewer."""
    high: float = Field(default=1.0, ge=0, le=1)
    """The greatest share; an attack that leaves more is weak."""
    images: int = Field(ge=1)
    """Number of test images that it was proved on."""
    source: str
    """Who proved it, and how."""


class BoardNote(_Model):
    """What a board says that does not follow from its records; kept beside it as ``board.json``."""

    grid: str
    """Name of the grid."""
    title: str
    """The board's heading."""
    about: str = ""
    """Paragraphs of plain text, divided by empty lines: what to know before reading."""
    references: tuple[Reference, ...] = ()
    """Figures from elsewhere."""
    differences: str = ""
    """Paragraphs of plain text: why the board's figures differ from those."""
    bounds: tuple[Bound, ...] = ()
    """Proved intervals of robust accuracy, beside which attacks are shown."""
    rank_by: str = ""
    """Norm and size of change that rank, as linf@8/255, or clean; empty where the data set's reference eps does."""

    @field_validator("grid")
    @classmethod
    def _spelled_as_now(cls, grid: str) -> str:
        return "generalization-study" if grid == "generalisation-study" else grid

    def to_json(self) -> str:
        """The note as indented JSON, ending in a newline."""
        return dumps(self.model_dump(mode="json"))
