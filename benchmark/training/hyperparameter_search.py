"""Searching a recipe for one row of a grid, by validation images alone: test images have no part in it."""

from __future__ import annotations

import itertools
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

from robbench.core.atomic_io import write_atomically
from robbench.core.device import prepare_device
from robbench.core.errors import RequestError, StoreError, did_you_mean, explain
from robbench.core.extras import require
from robbench.core.sample_rng import digest64
from robbench.core.sealed import SEAL
from robbench.planning.component_spec import plain
from robbench.planning.plan import Plan, TrainedJob
from robbench.results.schema import digest, dumps
from robbench.results.store import Store
from robbench.training.recipe import Recipe
from robbench.training.trial_table import Trial, read_trials, trials_csv

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

Train: TypeAlias = "Callable[[Plan, TrainedJob, Store], None]"

LR = (1e-5, 1.0)
WEIGHT_DECAY = (1e-6, 1e-1)
SCHEDULES = ("constant", "cosine", "one-cycle")
DIGITS = 3
"""Significant digits of what is drawn, so that a recipe can be copied without loss."""
_DATABASE = "optuna.db"


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        plan: The plan that the row is of.
        jobs: The row, once per seed.
        batch_sizes: The batch sizes to choose from; the row's own where there are none.
    """

    plan: Plan
    jobs: tuple[TrainedJob, ...]
    batch_sizes: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Data set and row."""
        return self.jobs[0].row

    @property
    def key(self) -> str:
        """Address of its trials."""
        space = {"lr": LR, "weight_decay": WEIGHT_DECAY, "digits": DIGITS, "first": "own"}
        return digest({"models": [job.key for job in self.jobs], "batch sizes": self.batch_sizes, "space": space})

    @property
    def folder(self) -> Path:
        """Where its trials are kept."""
        return self.plan.request.out / "searches" / self.key

    @property
    def validation(self) -> tuple[int, ...]:
        """Validation images per class."""
        splits = self.jobs[0].data.splits
        return splits.counts(splits.validation)


def prepare(plan: Plan, row: str | None = None, batch_sizes: Sequence[int] = ()) -> Search:
    """Choose the row to search a recipe for.

    Args:
        plan: A plan.
        row: Label of the row, with ``data set · `` before it where several data sets have it and the first is not
            meant; None for the first row.
        batch_sizes: Batch sizes to choose from; none to keep the row's own.

    Raises:
        RequestError: If there is no such row, nothing can be searched for it, or Optuna is not installed.
    """
    optuna = require("optuna", "search", "a search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: dict[str, list[TrainedJob]] = {}
    for job in plan.trained:
        rows.setdefault(job.row, []).append(job)
    found = [jobs for label, jobs in rows.items() if row in (None, label, jobs[0].spec.label)]
    if not found:
        names = {job.spec.label for job in plan.jobs}
        several = len({job.data.choice.label for job in plan.jobs}) > 1
        raise RequestError(
            f'there is no row "{row}"; {did_you_mean(str(row), names | (set(rows) if several else set()))}', "--row"
        )
    jobs = tuple(found[0])
    label = jobs[0].row
    if jobs[0].refusal:
        raise RequestError(f'"{label}" cannot be trained: {jobs[0].refusal}', "--row")
    if not jobs[0].recipe.unseen:
        raise RequestError(f'"{label}" trains on the test images; search a recipe with train_on = "train"', "--row")
    for size in batch_sizes:
        Recipe.make({"batch_size": size}, "--batch-sizes")
    return Search(plan, jobs, tuple(dict.fromkeys(batch_sizes)))


def train_here(plan: Plan, job: TrainedJob, store: Store) -> None:
    """Train a model of a search unless it is trained, in this process.

    Raises:
        Diverged: If its loss is no longer finite.
        RequestError: If it cannot be trained.
        StoreError: If it cannot be kept.
    """
    from robbench.training.trainer import Diverged, train_once

    prepare_device(plan.device, plan.request.deterministic)
    try:
        train_once(job, store, plan.device, plan.request.precision)
    except (Diverged, StoreError):
        raise
    except Exception as error:
        raise RequestError(f'"{job.row}" cannot be trained: {explain(error)}', "--row") from error


def search(
    wanted: Search, count: int, tell: Callable[[Trial], None] = lambda trial: None, train: Train = train_here
) -> list[Trial]:
    """Try recipes until there are so many, those of earlier searches of the same row included.

    The first trial is the row's own recipe. Each proposal is a function of the seeds and of the trials before it, and
    every trial is kept in Optuna's storage when it is done, so that a search may stop anywhere and go on later to the
    same end. ``trials.csv`` beside it shows them.

    Args:
        wanted: What to search.
        count: Number of trials in all.
        tell: Called after every trial that was not kept already.
        train: Trains a model; raises what ``train_here`` raises.

    Raises:
        RequestError: If the row cannot be trained or another search of it goes on.
        StoreError: If trials cannot be kept or read.
    """
    store = Store(wanted.plan.request.out)
    with store.lock(), Store(wanted.folder).lock(exclusive=True), _study(wanted) as study:
        trials = [_read(trial) for trial in study.get_trials(deepcopy=False)]
        _show(wanted, trials)
        if len(trials) >= count:
            return trials
        write_atomically(wanted.folder / "search.json", dumps(_about(wanted)))
        _train_starts(wanted, store, train)
        while len(trials) < count:
            trials.append(_tried(wanted, propose(wanted, trials), len(trials) + 1, store, train))
            study.add_trial(_frozen(trials[-1], wanted.batch_sizes))
            _show(wanted, trials)
            tell(trials[-1])
    return trials


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that came to their end, the best first; of equal ones, the earlier."""
    done = [trial for trial in trials if trial.balanced_accuracy is not None]
    return sorted(done, key=lambda trial: (-float(trial.balanced_accuracy or 0), trial.number))


def standard_error(accuracy: float, counts: Sequence[int]) -> float:
    """The standard error of a balanced accuracy, all classes taken as equally hard; ``counts`` are images per class."""
    total = sum(counts)
    # As if one more image were right and one more wrong: a perfect score on few images is no certainty.
    share = (accuracy * total + 1) / (total + 2)
    return math.sqrt(share * (1 - share) * sum(1 / count for count in counts)) / len(counts)


def propose(wanted: Search, trials: Sequence[Trial]) -> Recipe:
    """The recipe to try next: the row's own, then some at random, then what a tree-structured Parzen estimator advises.

    Args:
        wanted: What is searched.
        trials: What was tried before.
    """
    own = wanted.jobs[0].recipe
    if not trials:
        return own
    import optuna

    # A sampler of its own for each trial: what it draws does not depend on how often the search was interrupted.
    seed = digest64("search", *(job.seed for job in wanted.jobs), len(trials)) % 2**32
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    told = [_frozen(trial, wanted.batch_sizes) for trial in trials]
    study.add_trials([trial for trial in told if trial.params])
    asked = study.ask(_distributions(wanted.batch_sizes, decay=False))
    values = {**asked.params, "weight_decay": 0.0}
    if values.pop("decay"):
        values["weight_decay"] = asked.suggest_float("weight_decay", *WEIGHT_DECAY, log=True)
    drawn: dict[str, Any] = {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for name, value in values.items()
    }
    # Without what has no meaning beside them.
    drawn["nesterov"] = own.nesterov and own.momentum > 0 and drawn["optimizer"] == "sgd"
    drawn["warmup"] = 0.0 if drawn["schedule"] == "one-cycle" else own.warmup
    return replace(own, milestones=(), **drawn)


def _distributions(batch_sizes: Sequence[int], decay: bool) -> dict[str, Any]:
    """What is drawn, without or with a weight decay."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    hints = get_type_hints(Recipe)
    space: dict[str, Any] = {
        "optimizer": CategoricalDistribution(get_args(hints["optimizer"])),
        "lr": FloatDistribution(*LR, log=True),
        "schedule": CategoricalDistribution(SCHEDULES),
        "decay": CategoricalDistribution((False, True)),
    }
    if batch_sizes:
        space["batch_size"] = CategoricalDistribution(tuple(batch_sizes))
    return space | ({"weight_decay": FloatDistribution(*WEIGHT_DECAY, log=True)} if decay else {})


@contextmanager
def _study(wanted: Search) -> Iterator[Study]:
    """The trials of a search in Optuna's storage, those that an earlier version kept as CSV included.

    Those from the first on whose recipe means another model by now are left out: proposals follow from them. What held
    them stays as ``optuna.before.db`` or ``trials.before.csv``.
    """
    path = wanted.folder / _DATABASE
    kept: list[Trial] | None = None
    if path.is_file():
        with _opened(path) as study:
            try:
                kept = [_read(trial) for trial in study.get_trials(deepcopy=False)]
            except ValueError as error:
                raise StoreError(f"cannot read {path}: {error}; remove it and search again") from error
    current = _current(wanted, _earlier(wanted) if kept is None else kept)
    if current != kept:
        work = path.with_suffix(".new")
        work.unlink(missing_ok=True)
        with _opened(work) as study:
            study.add_trials([_frozen(trial, wanted.batch_sizes) for trial in current])
        if kept is not None:
            write_atomically(path.with_suffix(".before.db"), path.read_bytes())
        os.replace(work, path)
    with _opened(path) as study:
        yield study


def _current(wanted: Search, trials: Sequence[Trial]) -> list[Trial]:
    """The trials before the first whose recipe means another model by now."""
    return list(itertools.takewhile(lambda trial: trial.models == _keys(_jobs(wanted, trial.recipe)), trials))


@contextmanager
def _opened(path: Path) -> Iterator[Study]:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    storage: Any = None
    try:
        # The file is opened here, since not every path can stand in an URL.
        connect = {"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=connect)
        yield optuna.create_study(storage=storage, study_name="recipe", direction="maximize", load_if_exists=True)
    except (sqlite3.Error, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).split("\n")[0]
        raise StoreError(f"cannot use {path}: {reason}; remove it and search again") from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _frozen(trial: Trial, batch_sizes: Sequence[int]) -> FrozenTrial:
    """A trial as Optuna keeps it; without parameters where its recipe could not have been drawn, as the row's own."""
    import optuna

    values = {**trial.recipe.parameters(), "decay": trial.recipe.weight_decay > 0}
    space = _distributions(batch_sizes, values["decay"])
    facts = plain({**vars(trial), "recipe": trial.recipe.parameters()})
    kept: dict[str, Any] = {
        # What diverges is worth nothing; the sampler learns to keep away from it.
        "value": trial.balanced_accuracy or 0.0,
        "user_attrs": {**facts, SEAL: digest(facts)},
    }
    try:
        return optuna.create_trial(params={name: values[name] for name in space}, distributions=space, **kept)
    except ValueError:
        return optuna.create_trial(**kept)


def _read(kept: FrozenTrial) -> Trial:
    """A trial that Optuna kept; those of older versions have no seal.

    Raises:
        ValueError: If it is not what ``_frozen`` makes.
    """
    facts = dict(kept.user_attrs)
    seal = facts.pop(SEAL, None)
    if seal not in (None, digest(facts)):
        raise ValueError(f"trial {kept.number + 1} is damaged")
    try:
        return Trial(**{**facts, "recipe": Recipe.make(facts["recipe"], "a trial"), "models": tuple(facts["models"])})
    except (KeyError, TypeError, RequestError) as error:
        raise ValueError(f"trial {kept.number + 1} is not what robbench writes: {error}") from None


def _show(wanted: Search, trials: Sequence[Trial]) -> None:
    """Write the trials as CSV, for people."""
    write_atomically(wanted.folder / "trials.csv", trials_csv(trials))


def _earlier(wanted: Search) -> list[Trial]:
    """The trials that a version without Optuna's storage kept as CSV; none where there is no file."""
    path = wanted.folder / "trials.csv"
    if not path.is_file():
        return []
    write_atomically(path.with_name("trials.before.csv"), path.read_bytes())
    return read_trials(path, wanted.jobs[0].recipe)


def _jobs(wanted: Search, recipe: Recipe) -> list[TrainedJob]:
    """The models that a recipe stands for, one per seed."""
    return [wanted.plan.with_recipe(job, recipe) for job in wanted.jobs]


def _keys(jobs: Sequence[TrainedJob]) -> tuple[str, ...]:
    return tuple(job.key for job in jobs)


def _tried(wanted: Search, recipe: Recipe, number: int, store: Store, train: Train) -> Trial:
    from robbench.training.trainer import Diverged

    jobs = _jobs(wanted, recipe)
    trial = Trial(number, "diverged", recipe, _keys(jobs))
    try:
        for job in jobs:
            train(wanted.plan, job, store)
    except Diverged:
        return trial
    infos = [store.model_info(job.key) for job in jobs]
    return replace(
        trial,
        state="done",
        balanced_accuracy=sum(info["kept"]["validation_balanced_accuracy"] for info in infos) / len(infos),
        validation_loss=sum(info["kept"]["validation_loss"] for info in infos) / len(infos),
        seconds=sum(info["timings"]["training_seconds"] for info in infos),
    )


def _train_starts(wanted: Search, store: Store, train: Train) -> None:
    """Train the models that the row starts from, as the grid has them."""
    from robbench.training.trainer import Diverged

    for start in [start for job in wanted.jobs for start in wanted.plan.starts(job)]:
        try:
            train(wanted.plan, start, store)
        except Diverged as error:
            raise RequestError(f'"{wanted.label}" starts from "{start.spec.label}": {error}', "--row") from None


def _about(wanted: Search) -> dict[str, Any]:
    """What the key stands for, for people."""
    job = wanted.jobs[0]
    return {
        "dataset": job.data.choice.label,
        "row": job.spec.model_dump(mode="json"),
        "seeds": [job.seed for job in wanted.jobs],
        "batch_sizes": list(wanted.batch_sizes),
        "validation_images": list(wanted.validation),
        "precision": wanted.plan.request.precision,
        "device": wanted.plan.device,
    }
