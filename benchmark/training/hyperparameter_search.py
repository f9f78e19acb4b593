"""Searching a recipe for one row of a grid, by validation images alone: test images have no part in it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from robbench.core.atomic_io import write_atomically
from robbench.core.device import require_float32
from robbench.core.errors import RequestError, StoreError, did_you_mean, explain
from robbench.core.sample_rng import digest64
from robbench.planning.plan import Job, Plan
from robbench.results.schema import digest, dumps
from robbench.results.store import HISTORY, Store
from robbench.training.recipe import Recipe
from robbench.training.trials import FIELDS, Trial, read_trials, write_trials

LR = (1e-5, 1.0)
WEIGHT_DECAY = (1e-6, 1e-1)
DIGITS = 3
"""Significant digits of what is drawn, so that a recipe can be copied without loss."""


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        plan: The plan that the row is of.
        jobs: The row, once per seed.
        batch_sizes: The batch sizes to choose from; the row's own where there are none.
    """

    plan: Plan
    jobs: tuple[Job, ...]
    batch_sizes: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Data set and row."""
        return _label(self.jobs[0])

    @property
    def key(self) -> str:
        """Address of its trials."""
        return digest({"models": [job.key for job in self.jobs], "batch sizes": self.batch_sizes, "space": _space()})

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
        RequestError: If there is no such row, or nothing can be searched for it.
    """
    rows: dict[str, list[Job]] = {}
    for job in plan.jobs:
        rows.setdefault(_label(job), []).append(job)
    found = [jobs for label, jobs in rows.items() if row in (None, label, jobs[0].spec.label)]
    if not found:
        names = {job.spec.label for job in plan.jobs}
        several = len({job.data.choice.label for job in plan.jobs}) > 1
        raise RequestError(
            f'there is no row "{row}"; {did_you_mean(str(row), names | (set(rows) if several else set()))}', "--row"
        )
    jobs = tuple(found[0])
    label = _label(jobs[0])
    if jobs[0].refusal:
        raise RequestError(f'"{label}" cannot be trained: {jobs[0].refusal}', "--row")
    if not jobs[0].recipe.unseen:
        raise RequestError(f'"{label}" trains on the test images; search a recipe with train_on = "train"', "--row")
    for size in batch_sizes:
        Recipe.make({"batch_size": size}, "--batch-sizes")
    return Search(plan, jobs, tuple(dict.fromkeys(batch_sizes)))


def search(wanted: Search, count: int, tell: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Try recipes until there are so many, those of earlier searches of the same row included.

    The first trial is the row's own recipe. Each proposal is a function of the seeds and of the trials before it, and
    every trial is kept when it is done, so that a search may stop anywhere and go on later to the same end.

    Args:
        wanted: What to search.
        count: Number of trials in all.
        tell: Called after every trial that was not kept already.

    Raises:
        RequestError: If the row cannot be trained or another search of it goes on.
        StoreError: If trials cannot be kept or read.
    """
    store, path = Store(wanted.plan.request.out), wanted.folder / "trials.csv"
    with store.lock(), Store(wanted.folder).lock(exclusive=True):
        trials = read_trials(path, wanted.jobs[0].recipe)
        if len(trials) >= count:
            return trials
        require_float32(wanted.plan.device)
        write_atomically(wanted.folder / "search.json", dumps(_about(wanted)))
        for job in wanted.jobs:
            _train_starts(wanted.plan, job, store)
        while len(trials) < count:
            recipe = propose(wanted, trials)
            trials.append(_tried(wanted, recipe, len(trials) + 1, store))
            write_trials(path, trials)
            tell(trials[-1])
    return trials


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that came to their end, the best first; of equal ones, the earlier."""
    done = [trial for trial in trials if trial.balanced_accuracy is not None]
    return sorted(done, key=lambda trial: (-float(trial.balanced_accuracy or 0), trial.number))


def standard_error(accuracy: float, counts: Sequence[int]) -> float:
    """How far a balanced accuracy may be off by the choice of images, as if all classes were as hard as each other.

    Args:
        accuracy: The balanced accuracy.
        counts: Images per class.
    """
    total = sum(counts)
    # As if one more image were right and one more wrong: a perfect score on few images is no certainty.
    share = (accuracy * total + 1) / (total + 2)
    return math.sqrt(share * (1 - share) * sum(1 / count for count in counts)) / len(counts)


def toml(recipe: Recipe) -> str:
    """A recipe as a line of a grid; every field, so that it means the same in any grid."""
    values = recipe.parameters()
    names = (*FIELDS, *(name for name in values if name not in FIELDS))
    shown = {name: f'"{values[name]}"' if isinstance(values[name], str) else repr(values[name]) for name in names}
    return "recipe = { " + ", ".join(f"{name} = {value}" for name, value in shown.items()) + " }"


# ------------------------------------------------------------------------------------------------------------ proposals


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

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A sampler of its own for each trial: what it draws does not depend on how often the search was interrupted.
    seed = digest64("search", *(job.seed for job in wanted.jobs), len(trials)) % 2**32
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    always, sometimes = _distributions(wanted.batch_sizes)
    for trial in trials:
        values = {**trial.recipe.parameters(), "decay": trial.recipe.weight_decay > 0}
        names = [*always, *(sometimes if values["decay"] else ())]
        try:
            told = optuna.create_trial(
                params={name: values[name] for name in names},
                distributions={name: (always | sometimes)[name] for name in names},
                # What diverges is worth nothing; the sampler learns to keep away from it.
                value=trial.balanced_accuracy or 0.0,
            )
        except ValueError:
            continue  # the row's own recipe need not be one that could have been drawn
        study.add_trial(told)
    asked = study.ask(always)
    values = dict(asked.params)
    values["weight_decay"] = (
        asked.suggest_float("weight_decay", *WEIGHT_DECAY, log=True) if values.pop("decay") else 0.0
    )
    drawn: dict[str, Any] = {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for name, value in values.items()
    }
    return replace(own, **drawn)


def _distributions(batch_sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is drawn for every trial, and what only where ``decay`` is."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    hints = get_type_hints(Recipe)
    always: dict[str, Any] = {
        "optimizer": CategoricalDistribution(get_args(hints["optimizer"])),
        "lr": FloatDistribution(*LR, log=True),
        "schedule": CategoricalDistribution(get_args(hints["schedule"])),
        "decay": CategoricalDistribution((False, True)),
    }
    if batch_sizes:
        always["batch_size"] = CategoricalDistribution(tuple(batch_sizes))
    return always, {"weight_decay": FloatDistribution(*WEIGHT_DECAY, log=True)}


def _space() -> dict[str, Any]:
    """What tells this search from one among other recipes."""
    return {"lr": LR, "weight_decay": WEIGHT_DECAY, "digits": DIGITS, "first": "own"}


# --------------------------------------------------------------------------------------------------------------- trials


def _label(job: Job) -> str:
    return f"{job.data.choice.label} · {job.spec.label}"


def _tried(wanted: Search, recipe: Recipe, number: int, store: Store) -> Trial:
    from robbench.training.trainer import Diverged

    jobs = [wanted.plan.with_recipe(job, recipe) for job in wanted.jobs]
    trial = Trial(number, "diverged", recipe, tuple(job.key for job in jobs))
    try:
        for job in jobs:
            _train(wanted.plan, job, store)
    except Diverged:
        return trial
    kept = [_kept(job, store) for job in jobs]
    return replace(
        trial,
        state="done",
        balanced_accuracy=sum(float(line["validation_balanced_accuracy"]) for line in kept) / len(kept),
        validation_loss=sum(float(line["validation_loss"]) for line in kept) / len(kept),
        seconds=sum(store.model_info(job.key)["timings"]["training_seconds"] for job in jobs),
    )


def _train(plan: Plan, job: Job, store: Store) -> None:
    """Train a model unless it is trained.

    Raises:
        Diverged: If its loss stops being a number.
        RequestError: If it cannot be trained.
    """
    from robbench.training.trainer import Diverged, train

    if store.has_model(job.key):
        return
    try:
        train(job, store, plan.device, plan.request.precision)
    except (Diverged, StoreError):
        raise
    except Exception as error:
        raise RequestError(f'"{_label(job)}" cannot be trained: {explain(error)}', "--row") from error


def _train_starts(plan: Plan, job: Job, store: Store) -> None:
    """Train the models that a job starts from, as the grid has them."""
    from robbench.training.trainer import Diverged

    for start in plan.jobs:
        if start.key == job.start:
            _train_starts(plan, start, store)
            try:
                _train(plan, start, store)
            except Diverged as error:
                raise RequestError(f'"{_label(job)}" starts from "{start.spec.label}": {error}', "--row") from None


def _kept(job: Job, store: Store) -> Mapping[str, str]:
    """The epoch whose weights are the model."""
    with (store.model_dir(job.key) / HISTORY).open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    if job.recipe.keep == "last":
        return history[-1]
    return max(history, key=lambda line: float(line["validation_balanced_accuracy"]))


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
