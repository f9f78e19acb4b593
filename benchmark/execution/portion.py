"""The part of a plan that a process is handed, with the plugins that it needs and no others."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from robbench.core.attack import Attack
from robbench.core.certificate import Certificate, Certified
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError, StoreError
from robbench.core.registry import Registry, installed_source
from robbench.core.sample_rng import Streams
from robbench.core.sealed import hash_of
from robbench.core.threat_model import Threat
from robbench.data.lazy_images import unpickled
from robbench.planning.plan import Cell, Job, Plan


@dataclass(frozen=True)
class AttackElsewhere(Attack):
    """Stands for an attack of a plugin where that plugin is not loaded."""

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Refuse: the attack is run in a process of its own.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the plugin of this attack is not loaded here")


@dataclass(frozen=True)
class AdversarialElsewhere(AttackElsewhere):
    """The same for an attack without a norm that is no natural perturbation."""

    adversarial = True


@dataclass(frozen=True)
class ProvedElsewhere(Certificate):
    """Stands for a certificate of a plugin where that plugin is not loaded."""

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """Refuse: it is asked in a process that loads the plugin.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the plugin of this certificate is not loaded here")


@dataclass(frozen=True)
class Portion:
    """A part of a plan, packed.

    Attributes:
        files: The plugin files that its components come from, each with the hash of its source.
        modules: The modules of installed plugins that they come from, each with the hash of its source.
        packed: The pickled part, whose first job is the one to work on.
        moves: The store where it was packed, and where its files lie here; None where that is the same.
    """

    files: tuple[tuple[Path, str], ...]
    modules: tuple[tuple[str, str], ...]
    packed: bytes
    moves: tuple[Path, Path] | None = None

    def moved(self, before: Path, after: Path) -> Portion:
        """The same where the files of the store lie elsewhere: their directory where it was packed, and here."""
        return replace(self, moves=(before, after))

    @cached_property
    def digest(self) -> str:
        """Identifies its content."""
        return hash_of(repr((self.files, self.modules)).encode() + self.packed)

    def open(self) -> Plan:
        """Load the plugin files, and no other plugin, and unpack the part.

        Raises:
            StoreError: If a plugin or a data set is not what or where it was when the plan was made.
        """
        try:
            # Components are pickled by the names of their modules, and those of plugin files are made by loading.
            Registry(tuple(file for file, _ in self.files), False, tuple(source for _, source in self.files)).plugins()
            for module, source in self.modules:
                if installed_source(module) != source:
                    raise ImportError(f"{module} was edited")
            plan: Plan = _Unpickler(io.BytesIO(self.packed), self.moves).load()
        except OSError as error:
            raise StoreError(
                f"{error.filename or error} was moved or removed while the run was going on; run again with where it is"
            ) from error
        except (RequestError, ImportError, AttributeError) as error:
            what = "a plugin or data set was changed while the run was going on; run again"
            raise StoreError(f"{what} ({error})") from error
        return replace(plan, request=replace(plan.request, out=self.moves[1])) if self.moves else plan


class _Unpickler(pickle.Unpickler):
    """Maps arrays from where the files of the store lie here."""

    def __init__(self, file: io.BytesIO, moves: tuple[Path, Path] | None) -> None:
        super().__init__(file)
        self.moves = moves

    def find_class(self, module: str, name: str) -> Any:
        """A function or class by its name."""
        found = super().find_class(module, name)
        return functools.partial(_mapped, found, self.moves) if self.moves and found is unpickled else found


def _mapped(make: Callable[..., Any], moves: tuple[Path, Path], *given: Any) -> Any:
    *rest, files = given
    before, after = moves
    here = {
        name: str(after / Path(file).relative_to(before)) if Path(file).is_relative_to(before) else file
        for name, file in files.items()
    }
    return make(*rest, here)


def portion_to_judge(plan: Plan, job: Job, cells: Sequence[Cell]) -> Portion:
    """What training and judging a job need: its own plugins and those of certificates, and none that attack it."""
    here = [cell for cell in cells if not attacked_elsewhere(cell)]
    own = tuple(cell if proof_sources([cell]) and cell in cells else _without_plugins(cell) for cell in job.cells)
    jobs = (replace(job, cells=own), *_peers(plan, here))
    return _pack(plan, jobs, _sources(jobs) | proof_sources(cells))


def portion_to_attack(plan: Plan, job: Job, cell: Cell) -> Portion:
    """What attacking a job's model in one cell needs."""
    jobs = (replace(job, cells=(cell,)), *_peers(plan, [cell]))
    return _pack(plan, jobs, _sources(jobs) | attack_sources(cell))


def attack_sources(cell: Cell) -> set[str]:
    """Hashes of the plugins that a cell's attacks come from."""
    return {stage.attack.source for stage in cell.condition.stages if stage.attack.source is not None}


def proof_sources(cells: Iterable[Cell]) -> set[str]:
    """Hashes of the plugins that certificates of cells come from; they are loaded where their cells are judged."""
    proofs = [cell.condition.proof for cell in cells if cell.condition.proof]
    return {proof.method.source for proof in proofs if proof.method.source is not None}


def attacked_elsewhere(cell: Cell) -> bool:
    """Whether an attack of a cell comes from a plugin, or stands for one that does."""
    return bool(attack_sources(cell))


def judge_sources(plan: Plan, job: Job, cells: Sequence[Cell]) -> set[str]:
    """Hashes of the plugins that are loaded where the cells of a job are judged."""
    own = _sources([job, *_peers(plan, [cell for cell in cells if not attacked_elsewhere(cell)])])
    return own | proof_sources(cells)


def check_plan(plan: Plan) -> None:
    """See whether every component of a plan can be handed to another process.

    Raises:
        RequestError: If one of a plugin cannot.
    """
    try:
        pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RequestError(
            f"worker processes cannot be handed the plan: {error}; define a plugin's classes at the top level of "
            "their file"
        ) from None


def _without_plugins(cell: Cell) -> Cell:
    condition = cell.condition
    stages = tuple(
        replace(stage, attack=replace(stage.attack, component=_stand_in(stage.attack.component)))
        if stage.attack.source is not None
        else stage
        for stage in condition.stages
    )
    proof = condition.proof
    if proof and proof.method.source is not None:
        proof = replace(proof, method=replace(proof.method, component=ProvedElsewhere()))
    return replace(cell, condition=replace(condition, stages=stages, proof=proof))


def _stand_in(attack: Attack) -> Attack:
    return AdversarialElsewhere() if attack.adversarial else AttackElsewhere()


def _peers(plan: Plan, cells: Iterable[Cell]) -> tuple[Job, ...]:
    wanted = {key for cell in cells for key in cell.peers}
    return tuple(replace(job, cells=()) for job in plan.jobs if job.key in wanted)


def _sources(jobs: Iterable[Job]) -> set[str]:
    return set().union(*(job.sources for job in jobs))


def _pack(plan: Plan, jobs: tuple[Job, ...], sources: set[str]) -> Portion:
    plugins = [plugin for plugin in plan.registry.plugins() if plugin.source in sources]
    files = tuple((plugin.file, plugin.source) for plugin in plugins if plugin.file is not None)
    modules = tuple((plugin.module.__name__, plugin.source) for plugin in plugins if plugin.file is None)
    return Portion(files, modules, pickle.dumps(replace(plan, jobs=jobs, registry=Registry(installed=False))))
