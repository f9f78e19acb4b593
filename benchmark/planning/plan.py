"""What is to be done: every model and condition of a grid, resolved, checked and addressed by key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robbench.core.contracts import Architecture, Balancer, Defense, Objective, Samples
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm
from robbench.data.dataset import Dataset, DecodedImages, EpsList
from robbench.data.splits import Splits, stratified
from robbench.models._external.request import ExternalRequest
from robbench.planning.component_spec import Choice, plain, size_doubts
from robbench.planning.conditions import Condition
from robbench.planning.grid import GridFile, Request
from robbench.results.schema import CellSpec, CertificateSpec, ConditionSpec, DatasetSpec, ModelSpec, PartSpec, digest
from robbench.training.recipe import Recipe

if TYPE_CHECKING:
    from robbench.core.batches import StoredSamples
    from robbench.models._external.loading import External

_LATER = {"train_on": "train"}
"""Fields that recipes did not have at first, with what stands for their absence: keys leave them out then."""
_VERSIONS = {("schedule", "one-cycle"): 2}
"""Values of a recipe whose results changed: keys hold the version beside them."""

_ONCE = {"image-folder": {"path": ""}, "image-folder-imbalanced": {"path": ""}}
"""By component, what keys hold in place of fields that were part of the identity at first."""

PROTOCOL = 2
"""Raised when training or evaluation give other results for the same specification."""


@dataclass(frozen=True)
class Data:
    """A data set with its images and splits.

    Attributes:
        choice: The data set.
        decoded: Its images.
        splits: Which of them are for what.
        eps: The sizes at which it is attacked, per norm.
        asked: What the grid asks for, ``{dataset}`` replaced.
    """

    choice: Choice[Dataset]
    decoded: DecodedImages
    splits: Splits
    eps: Mapping[Norm, EpsList]
    asked: Any = None

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.splits.class_names)

    @property
    def as_published(self) -> bool:
        """Whether its images are those that published boards are about."""
        return type(self.choice.component).published in (None, self.decoded.fingerprint)

    def is_called(self, name: str) -> bool:
        """Whether a grid means the data set by a name."""
        return name in (self.choice.label, self.asked)

    def samples(self, part: str) -> Samples:
        """The images of ``train``, ``validation``, ``test`` or ``gallery``."""
        return self.splits.take(self.decoded, getattr(self.splits, part))

    def tested(self, size: int | None) -> StoredSamples:
        """The test images, or a stratified sample of them, decoded when they are asked for where they are too many."""
        splits, index = self.splits, self.splits.test
        if size is not None:
            index = index[stratified(splits.labels[index], size, self.choice.component.split_seed)]
        return splits.stored(self.decoded, index)

    @cached_property
    def spec(self) -> DatasetSpec:
        """The data set as plain data."""
        parts = ("train", "validation", "test", "gallery")
        return DatasetSpec(
            **self.choice.spec().model_dump(),
            fingerprint=self.decoded.fingerprint,
            class_names=self.splits.class_names,
            counts={part: self.splits.counts(getattr(self.splits, part)) for part in parts},
            duplicates=self.decoded.duplicates,
            crossing=self.splits.crossing,
            remarks=self.decoded.remarks,
            eps={norm: sizes.values for norm, sizes in self.eps.items()},
            reference={norm: sizes.reference for norm, sizes in self.eps.items()},
        )


@dataclass(frozen=True)
class Cell:
    """One condition of one model.

    Attributes:
        key: Its address.
        condition: What is done to the images.
        spec: Everything that can change its result, as plain data.
        refusal: Why it cannot be run, or None.
        peers: Keys of the other models that its attack works through.
        needs: Keys of the row's other cells that it rests on: see ``CellSpec.needs``.
    """

    key: str
    condition: Condition
    spec: CellSpec
    refusal: str | None
    peers: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, and the cells that need it.

    Attributes:
        key: Address of the model.
        data: What it is tested on, and trained on where it is trained here.
        defenses: Its defenses.
        seed: Seed of its training and of its attacks.
        spec: The row as plain data.
        notes: What its records should say about how it was planned.
        cells: The conditions it is put to.
        refusal: Why it cannot be had, or None.
        members: The models that vote, where it is a vote.
    """

    key: str
    data: Data
    defenses: tuple[Choice[Defense], ...]
    seed: int
    spec: ModelSpec
    refusal: str | None
    cells: tuple[Cell, ...] = ()
    notes: tuple[str, ...] = ()
    members: tuple[Job, ...] = ()

    @property
    def row(self) -> str:
        """Data set and row."""
        return f"{self.data.choice.label} · {self.spec.label}"

    @property
    def label(self) -> str:
        """Data set, row and seed."""
        return f"{self.row} · seed {self.seed}"

    @property
    def unseen(self) -> bool:
        """Whether the test images are no part of what it is trained on here."""
        return True

    @property
    def sources(self) -> set[str]:
        """Hashes of the plugins that its components come from."""
        own = {part.source for part in self._choices if part.source is not None}
        return own.union(*(member.sources for member in self.members))

    @property
    def _choices(self) -> tuple[Choice[Any], ...]:
        return (self.data.choice, *self.defenses)


@dataclass(frozen=True, kw_only=True)
class TrainedJob(Job):
    """A model to be trained.

    Attributes:
        architecture, objective, balancer: Its other components.
        recipe: How it is trained.
        start: Key of the model it is warm-started from.
        pretrained: Whether it starts from weights that its architecture has from elsewhere.
    """

    architecture: Choice[Architecture]
    objective: Choice[Objective]
    balancer: Choice[Balancer]
    recipe: Recipe
    start: str | None
    pretrained: bool = False

    @property
    def unseen(self) -> bool:
        """Whether the test images are no part of what it is trained on."""
        return self.recipe.unseen

    @property
    def _choices(self) -> tuple[Choice[Any], ...]:
        return (*super()._choices, self.architecture, self.objective, self.balancer)


@dataclass(frozen=True, kw_only=True)
class ExternalJob(Job):
    """A model that others trained.

    Attributes:
        asked: How it is asked for.
        folder: What relative paths in that are relative to.
        live: The model itself, where it was handed over and cannot be loaded again; a plan with one stays in its
            process.
    """

    asked: ExternalRequest
    folder: Path
    live: External | None = None


@dataclass(frozen=True)
class Plan:
    """All jobs of a request, a warm-started model after the one it starts from. Worker processes are handed it.

    Attributes:
        name: Name of the grid.
        grid: The grid.
        request: What the user asks.
        device: Device type.
        registry: The known components.
        jobs: The jobs.
        as_written: Whether the grid is a built-in one and no option changes what it asks for.
    """

    name: str
    grid: GridFile
    request: Request
    device: str
    registry: Registry
    jobs: tuple[Job, ...]
    as_written: bool = False

    @property
    def cells(self) -> Iterable[tuple[Job, Cell]]:
        """Every cell with its job."""
        return ((job, cell) for job in self.jobs for cell in job.cells)

    @property
    def remarks(self) -> list[str]:
        """What whoever asked should know before the plan is carried out."""
        found: list[str] = []
        seen: set[tuple[int, int]] = set()
        for job in self.jobs:
            decoded = job.data.decoded
            found += [f"{job.data.choice.label}: {remark}" for remark in decoded.remarks]
            found += [f"{job.spec.label}: {note}" for note in job.notes if isinstance(job, ExternalJob)]
            values = math.prod(decoded.images.shape[1:])
            found += [doubt for defense in job.defenses for doubt in size_doubts(defense, values)]
            # The models of a data set share its conditions.
            conditions = {(id(cell.condition), values): cell.condition for cell in job.cells}
            found += [doubt for at in conditions if at not in seen for doubt in conditions[at].doubts(values)]
            seen |= conditions.keys()
        return list(dict.fromkeys(found))

    def starts(self, job: Job) -> list[TrainedJob]:
        """The models that a job is warm-started from, the first trained first."""
        start = self._trained.get(job.start) if isinstance(job, TrainedJob) and job.start else None
        return [*self.starts(start), start] if start else []

    @cached_property
    def _trained(self) -> dict[str, TrainedJob]:
        return {job.key: job for job in reversed(self.trained)}

    @property
    def trained(self) -> tuple[TrainedJob, ...]:
        """Those of the jobs whose models are trained here."""
        return tuple(job for job in self.jobs if isinstance(job, TrainedJob))

    def with_recipe(self, job: TrainedJob, recipe: Recipe) -> TrainedJob:
        """One of the jobs with another recipe: the model that a grid with that recipe asks for, without cells."""
        spec = job.spec.model_copy(update={"recipe": plain(recipe.identity())})
        start = job.start or job.spec.start
        key = model_key(self.request.precision, self.device, job.data.spec, spec, job.seed, start)
        return replace(job, key=key, spec=spec, recipe=recipe, cells=())


def in_front(job: Job) -> list[Defense]:
    """The job's inference-time defenses, and those of the members of a vote."""
    own = [choice.component for choice in job.defenses if type(choice.component).wrap is not Defense.wrap]
    return [*own, *(defense for member in job.members for defense in in_front(member))]


def _part_identity(part: PartSpec) -> dict[str, Any]:
    identity = part.model_dump(include={"name", "version", "source", "parameters"}, mode="json")
    return {**identity, "parameters": {**identity["parameters"], **_ONCE.get(part.name, {})}}


def _certificate_identity(certificate: CertificateSpec) -> dict[str, Any]:
    return {**_part_identity(certificate), "norm": certificate.norm, "eps": certificate.eps}


def condition_identity(condition: ConditionSpec) -> dict[str, Any]:
    """Cache identity of a condition."""
    return {
        "stages": [{**_part_identity(stage), "norm": stage.norm, "eps": stage.eps} for stage in condition.stages],
        "target": condition.target,
        "survivors": condition.survivors,
        "undefended": condition.undefended,
        # A check of one grid may rank in another: its record says which.
        **({"check": True} if condition.check else {}),
        "draws": condition.draws,
        "sample": condition.sample,
        **({"union": condition.union} if condition.union else {}),
        **({"certificate": _certificate_identity(condition.certificate)} if condition.certificate else {}),
    }


def model_key(precision: str, device: str, dataset: DatasetSpec, spec: ModelSpec, seed: int, start: str | None) -> str:
    """The address of a model: a hash of all that can change it.

    Args:
        precision: Of training; no part of a model that others trained.
        device: Device type.
        dataset: What it is trained on.
        spec: How.
        seed: Seed of its training.
        start: Identifies what training starts from, or None.
    """
    if spec.external is not None:
        return digest(
            {
                "dataset": {**_part_identity(dataset), "fingerprint": dataset.fingerprint},
                "external": spec.external.identity,
                "defenses": [_part_identity(defense) for defense in spec.defenses],
                "seed": seed,
                "device": device,
                "protocol": PROTOCOL,
            }
        )
    return digest(
        {
            "dataset": {**_part_identity(dataset), "fingerprint": dataset.fingerprint},
            "architecture": _part_identity(spec.architecture),
            "objective": _part_identity(spec.objective),
            "balancer": _part_identity(spec.balancer),
            "defenses": [_part_identity(defense) for defense in spec.defenses],
            "recipe": {
                name: [value, _VERSIONS[name, value]] if (name, str(value)) in _VERSIONS else value
                for name, value in spec.recipe.items()
                if _LATER.get(name) != value
            },
            "seed": seed,
            "start": start,
            "precision": precision,
            "device": device,
            "protocol": PROTOCOL,
        }
    )


def cell_key(spec: CellSpec, peers: Sequence[str], needs: Sequence[str]) -> str:
    """The address of a cell: a hash of all that can change its result.

    Args:
        spec: What is evaluated; labels are no part of the key.
        peers: Keys of the other models that its attack works through.
        needs: Keys of the cells that it rests on.
    """
    identity = {
        "model": spec.model_key,
        "condition": condition_identity(spec.condition),
        "protocol": spec.protocol,
        "peers": peers,
        "needs": sorted(needs),
    }
    if spec.precision != "float32":
        # There were stores with attacks in the precision of training.
        identity["attacked_in"] = "float32"
    return digest(identity)
