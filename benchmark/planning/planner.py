"""From a request to a plan: resolving names, checking what can be done, addressing cells by key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robbench.core.contracts import Architecture, Balancer, Defense
from robbench.core.device import named_devices
from robbench.core.errors import RequestError, did_you_mean, unless_damaged
from robbench.core.registry import Kind, Registry
from robbench.data.cache import decode
from robbench.data.splits import split
from robbench.models._external.request import Answers
from robbench.planning.audit_conditions import audit_conditions
from robbench.planning.component_spec import Choice, choose, plain, row_label, split_outside_brackets
from robbench.planning.conditions import Condition, ConditionRequest
from robbench.planning.cross_references import check_named
from robbench.planning.external_rows import Origin, external_job
from robbench.planning.grid import Grid, GridFile, ModelEntry, Request, ranked_by
from robbench.planning.inputs import FoundDataset, Inputs, find_dataset, read_request
from robbench.planning.needs import check_unions, missing_attack, needed_cells
from robbench.planning.plan import (
    PROTOCOL,
    Cell,
    Data,
    Job,
    Plan,
    TrainedJob,
    cell_key,
    condition_identity,
    in_front,
    model_key,
)
from robbench.planning.training_check import check_network, check_training
from robbench.planning.vote_rows import vote_job
from robbench.results.schema import CellSpec, ModelSpec, digest
from robbench.results.store import Store
from robbench.training.recipe import Recipe

if TYPE_CHECKING:
    from robbench.models._external.loading import External

IMAGENET = "imagenet"
"""As a start: weights that the architecture has from training on ImageNet."""


def make_plan(asked: Request | Inputs, fresh: bool = False, live: Mapping[str, External] | None = None) -> Plan:
    """Resolve a request.

    Weights from elsewhere are asked for once: the answer is kept in the store, and later plans of the grid rest on it.

    Args:
        asked: The request, or what was read of it.
        fresh: Whether to ask for weights from elsewhere again.
        live: Models that were handed over, by the ``source`` that the grid names them by.

    Raises:
        RequestError: If anything in it cannot be done, naming where, key and value.
        StoreError: If decoded images cannot be kept in the store.
    """
    inputs = read_request(asked) if isinstance(asked, Request) else asked
    request, grid = inputs.request, inputs.grid
    device = _device(request.device)
    store = Store(request.out)
    nothing: dict[str, Any] = {}
    known = unless_damaged(lambda: store.starts(inputs.asked), nothing, "pretrained weights are asked for again")
    answers = {} if fresh else dict(known)
    resolver = _Resolver(request, device, grid, inputs.registry, answers, live or {})
    jobs = [job for data in _all_data(inputs) for job in resolver.jobs(data)]
    if resolver.answers != known:
        store.note_starts(inputs.asked, resolver.answers)
    as_written = inputs.as_written and device == "cpu" and all(job.data.as_published for job in jobs)
    return Plan(grid.name, grid.content, request, device, inputs.registry, tuple(jobs), as_written)


def load_data(registry: Registry, wanted: Any, data_dir: Path | None, out: Path, where: str) -> Data:
    """A data set that is asked for, with its images.

    Raises:
        RequestError: If it cannot be had, naming ``where`` it was asked for.
        StoreError: If its decoded images cannot be kept in the store ``out``.
    """
    return read_data(find_dataset(registry, wanted, data_dir, where), out)


def _all_data(inputs: Inputs) -> Iterator[Data]:
    """The grid's data sets with their images; those that differ only in where they lie are told by their content."""
    labels = [found.choice.label for found in inputs.datasets]
    seen: set[tuple[str, str]] = set()
    for found in inputs.datasets:
        data = read_data(found, inputs.request.out)
        label, fingerprint = found.choice.label, data.decoded.fingerprint
        if (label, fingerprint) in seen:
            raise RequestError(f'"{label}" is asked for twice: two places hold the same images', found.where)
        seen.add((label, fingerprint))
        if labels.count(label) > 1:
            data = replace(data, choice=replace(data.choice, label=f"{label} {fingerprint[:8]}"))
        yield data


def read_data(found: FoundDataset, out: Path) -> Data:
    """A data set whose files were found, with its images; see ``load_data``."""
    try:
        decoded = decode(found.files, out / "data")
        return Data(found.choice, decoded, split(found.choice.component, decoded), found.eps, found.wanted)
    except RequestError as error:
        raise RequestError(f'"{found.choice.label}": {error}', found.where) from None


def _device(wanted: str) -> str:
    kind, numbers = named_devices(wanted)
    if kind == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if numbers and max(numbers) >= count:
            raise RequestError(f"there is no cuda:{max(numbers)} here, only cuda:0 to cuda:{count - 1}", "--device")
        return "cuda"
    if kind == "cuda":
        raise RequestError("there is no CUDA device here; leave it out or say cpu", "--device")
    return "cpu"


@dataclass(frozen=True)
class Start:
    """Where training starts from: a model of the grid, weights from elsewhere, or neither."""

    label: str | None = None
    model: TrainedJob | None = None
    pretrained: bool = False
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str | None:
        """Cache identity of the initial weights."""
        return self.model.key if self.model else self.label


@dataclass(frozen=True)
class _Resolver:
    request: Request
    device: str
    source: Grid
    registry: Registry
    answers: dict[str, Any]
    """What came of asking for weights from elsewhere."""
    live: Mapping[str, External]

    @property
    def grid(self) -> GridFile:
        return self.source.content

    @property
    def where(self) -> str:
        return self.source.where

    def jobs(self, data: Data) -> list[Job]:
        """The jobs of one of the grid's data sets."""
        conditions = self._conditions(data)
        first, *later = self.request.seeds or tuple(self.grid.seeds)
        jobs = self._models(data, conditions, first)
        # Weights that are given are one checkpoint: rows of the first seed, and peers of those of every other.
        given = [job for job in jobs if job.spec.external is not None and not job.members]
        jobs += [job for seed in later for job in self._models(data, conditions, seed, given)]
        check_named(self.source, conditions, data, jobs)
        check_unions(conditions, data.choice.label, self.where)
        return jobs

    def _conditions(self, data: Data) -> list[Condition]:
        found: dict[str, Condition] = {}
        meanings: dict[str, str] = {}
        for position, wanted in enumerate(self.grid.conditions):
            where = f'{self.where}: key "conditions.{position}"'
            request = ConditionRequest.read(wanted, where)
            for condition in request.resolve(self.registry, data.eps, data.splits.class_names, where):
                condition = condition.limited(self.request.limit, len(data.splits.test))
                if condition.label in found:
                    raise RequestError(f'"{condition.label}" is asked for twice', where)
                other = meanings.setdefault(digest(condition_identity(condition.spec())), condition.label)
                if other != condition.label:
                    raise RequestError(f'"{condition.label}" is the same condition as "{other}"', where)
                found[condition.label] = condition
        if self.grid.audit or self.request.audit:
            resolved = list(found.values())
            usual = {norm: sizes.reference for norm, sizes in data.eps.items()}
            rank_by = ranked_by(self.grid.rank_by, data.eps)
            for condition in audit_conditions(resolved, usual, self.registry, data.num_classes, rank_by):
                found[condition.label] = condition.limited(self.request.limit, len(data.splits.test))
        every = self.request.keep_images
        return [replace(one, keep_images=one.keep_images or every) for one in found.values()]

    def _models(self, data: Data, conditions: list[Condition], seed: int, given: Sequence[Job] = ()) -> list[Job]:
        rows: dict[str, Job] = {}
        by_key: dict[str, str] = {}
        waiting: list[tuple[int, ModelEntry]] = []
        for position, entry in enumerate(self.grid.models):
            named = [self.grid.filled(name, self.request.dataset) for name in entry.datasets or ()]
            if not named or any(map(data.is_called, named)):
                waiting.append((position, entry))
        if not self.request.seeds:
            waiting = [(at, entry) for at, entry in waiting if entry.seeds is None or seed in entry.seeds]
        if seed != (self.request.seeds or self.grid.seeds)[0]:
            # Weights that are given are one checkpoint, whatever the number of seeds that others are trained with.
            waiting = [(at, entry) for at, entry in waiting if entry.asked is None or entry.seeds]
        while waiting:
            known = {job.spec.label: job for job in given} | rows
            ready = [(at, one) for at, one in waiting if {*one.starts, *(one.vote or ())} <= {IMAGENET, *known}]
            if not ready:
                at, entry = waiting[0]
                key = "vote" if entry.vote else "start"
                wanted = next(name for name in entry.vote or entry.starts if name not in (IMAGENET, *known))
                names = [other.name for other in self.grid.models if other.name and other is not entry]
                raise RequestError(
                    f'key "models.{at}.{key}" = "{wanted}": no model of that name comes before it on '
                    f"{data.choice.label}, seed {seed}; {did_you_mean(wanted, [*names, *known, IMAGENET])}",
                    self.where,
                )
            for at, entry in ready:
                for job in self._entry(at, entry, data, seed, known):
                    if job.spec.label in rows:
                        raise RequestError(
                            f'key "models.{at}": a second model called "{job.spec.label}"; give it a name', self.where
                        )
                    same = by_key.setdefault(job.key, job.spec.label)
                    if same != job.spec.label:
                        raise RequestError(
                            f'key "models.{at}": "{job.spec.label}" is the same model as "{same}"', self.where
                        )
                    rows[job.spec.label] = job
            begun = {at for at, _ in ready}
            waiting = [(at, entry) for at, entry in waiting if at not in begun]
        others = [*rows.values(), *(job for job in given if job.spec.label not in rows)]
        peers = sorted(job.key for job in others if not job.refusal)
        return [replace(job, cells=self._cells(job, conditions, peers)) for job in rows.values()]

    def _cells(self, job: Job, conditions: Sequence[Condition], models: Sequence[str]) -> tuple[Cell, ...]:
        members = tuple(sorted(member.key for member in job.members))
        cells: list[Cell] = []
        for condition in sorted(conditions, key=lambda condition: condition.survivors or bool(condition.union)):
            if condition.undefended and not in_front(job):
                continue
            if condition.models is None or job.spec.label in condition.models:
                peers = tuple(key for key in models if key != job.key) if condition.needs_peers else members
                cells.append(self._cell(job, condition, peers, cells))
        return tuple(cells)

    def _entry(self, at: int, entry: ModelEntry, data: Data, seed: int, rows: Mapping[str, Job]) -> Iterable[Job]:
        if entry.asked is None and entry.vote is None:
            return self._sweep(at, entry, data, seed, rows)
        where = f'{self.where}: key "models.{at}'
        if isinstance(entry.defense, list):
            raise RequestError(f'{where}.defense": a model that is not trained here takes one defense, no list')
        defenses = self._defenses(entry.defense, f'{where}.defense"')
        if entry.asked is None:
            return [vote_job(entry.name, [rows[name] for name in entry.vote or ()], defenses, self.device, where)]
        origin = Origin(self.source.folder, self.live.get(entry.asked.source), f'{where}.external"')
        return [external_job(entry.name, entry.asked, defenses, data, seed, self.device, origin)]

    def _sweep(self, at: int, entry: ModelEntry, data: Data, seed: int, rows: Mapping[str, Job]) -> Iterable[Job]:
        where = f'{self.where}: key "models.{at}'
        if not len(data.splits.train):
            raise RequestError(f'{where}": {data.choice.label} has no training images, since its split is 0, 0, 1')
        if data.eps != data.choice.component.eps:
            # Adversarial training takes its size from the data set itself.
            raise RequestError(f'{where}": eps of a data set are for models that others trained; write sizes out')
        suggested = dict(data.choice.component.recipe)
        usual = suggested.pop("architecture", "small-cnn")
        recipe = Recipe.make({**suggested, **self.grid.recipe, **entry.recipe}, f'{where}.recipe"')
        choices = itertools.product(
            self._swept("architecture", entry.architecture or usual, f'{where}.architecture"'),
            self._swept("objective", entry.objective, f'{where}.objective"'),
            [self._defenses(wanted, f'{where}.defense"') for wanted in _listed(entry.defense)],
            self._swept("balancer", entry.balancer, f'{where}.balancer"'),
        )
        combinations = list(choices)
        if not combinations:
            raise RequestError(f'{where}" sweeps an empty list: it stands for no model')
        if entry.name is not None and len(combinations) > 1:
            raise RequestError(f'{where}.name" = "{entry.name}": the entry stands for {len(combinations)} models')
        shape = tuple(data.decoded.images.shape[1:])
        for architecture, objective, defenses, balancer in combinations:
            check_training(recipe, objective, defenses, data.choice.component, where)
            check_network(architecture, objective, defenses, shape, data.num_classes, where)
            label = entry.name or row_label(architecture, objective, defenses, balancer, str(usual))
            start = self._start(entry, architecture, data, rows, f'{where}.start"')
            spec = ModelSpec(
                label=label,
                architecture=architecture.spec(),
                objective=objective.spec(),
                balancer=balancer.spec(),
                defenses=tuple(defense.spec() for defense in defenses),
                recipe=plain(recipe.identity()),
                start=start.label,
            )
            key = model_key(self.request.precision, self.device, data.spec, spec, seed, start.identity)
            refusal = _refusal(balancer, data.spec.counts["train"])
            if refusal is None and start.model and start.model.refusal:
                refusal = f"the model that it starts from is refused: {start.model.refusal}"
            yield TrainedJob(
                key=key,
                data=data,
                architecture=architecture,
                objective=objective,
                balancer=balancer,
                defenses=defenses,
                recipe=recipe,
                seed=seed,
                spec=spec,
                start=start.model.key if start.model else None,
                refusal=refusal,
                pretrained=start.pretrained,
                notes=start.notes,
            )

    def _start(
        self, entry: ModelEntry, architecture: Choice[Architecture], data: Data, rows: Mapping[str, Job], where: str
    ) -> Start:
        """The first of an entry's starts that can be had."""
        missing: list[str] = []
        for wanted in entry.starts:
            notes = tuple(f"does not start from {IMAGENET}: {reason}" for reason in missing)
            if wanted != IMAGENET:
                model = rows[wanted]
                if not isinstance(model, TrainedJob):
                    raise RequestError(f'"{wanted}" is a model that others trained; start from one of the grid', where)
                return Start(wanted, model, notes=notes)
            name, reason = self._pretrained(architecture, data)
            if name is not None:
                return Start(name, pretrained=True)
            missing.append(reason)
        if missing:
            raise RequestError(f"{missing[0]}; name a model of the grid behind it to start from instead", where)
        return Start()

    def _pretrained(self, architecture: Choice[Architecture], data: Data) -> tuple[str | None, str]:
        """What ``Architecture.pretrained`` answered when this was first asked for: a network comes and goes."""
        shape: tuple[int, int, int] = tuple(data.decoded.images.shape[1:])
        question = digest([architecture.spec().model_dump(mode="json"), shape])
        if question not in self.answers:
            self.answers[question] = list(architecture.component.pretrained(shape))
        name, reason = self.answers[question]
        return name, reason

    def _swept(self, kind: Kind, wanted: Any, where: str) -> list[Choice[Any]]:
        return [choose(self.registry, kind, item, where) for item in _listed(wanted)]

    def _defenses(self, wanted: Any, where: str) -> tuple[Choice[Defense], ...]:
        parts = split_outside_brackets(wanted, "+") if isinstance(wanted, str) else [wanted]
        return tuple(choose(self.registry, "defense", part, where) for part in parts)

    def _cell(self, job: Job, condition: Condition, peers: tuple[str, ...], before: Sequence[Cell]) -> Cell:
        if job.spec.external is not None and condition.embed:
            condition = replace(condition, embed=0)
        needs = needed_cells(condition, before)
        spec = CellSpec(
            dataset=job.data.spec,
            model=job.spec,
            model_key=job.key,
            condition=condition.spec(),
            seed=job.seed,
            precision=self.request.precision if isinstance(job, TrainedJob) else "float32",
            device=self.device,
            protocol=PROTOCOL,
            start_key=(job.start if isinstance(job, TrainedJob) else None) or job.spec.start,
            peers=peers,
            needs=needs,
        )
        key = cell_key(spec, peers, needs)
        answers: Answers = job.spec.external.identity["answers"] if job.spec.external else "gradients"
        refusal = job.refusal or condition.refusal(job.data.num_classes) or condition.out_of_reach(answers)
        refusal = refusal or missing_attack(condition, before)
        if not job.unseen:
            refusal = "no unseen data: the test images are part of its training set"
        if refusal is None and condition.needs_peers and not peers:
            refusal = "there is no other model in the grid to work through"
        return Cell(key, condition, spec, refusal, peers, needs)


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _refusal(balancer: Choice[Balancer], counts: tuple[int, ...]) -> str | None:
    import torch

    reason = balancer.component.refusal(torch.tensor(counts))
    return f"{balancer.label}: {reason}" if reason else None
