"""Carrying out one job: its model is trained, loaded, put to its conditions; every cell ends as a record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.device import require_float32
from robbench.core.errors import RequestError, StoreError, explain, warn
from robbench.planning.plan import Cell, Job, Plan, in_front
from robbench.results.schema import Ints, Record
from robbench.results.store import EMBEDDINGS, Store

if TYPE_CHECKING:
    from robbench.evaluation.evaluator import Result
    from robbench.evaluation.subject import Subject
    from robbench.execution.helpers import Helpers


@dataclass(frozen=True)
class Progress:
    """Something that happened, told to whoever shows it.

    Attributes:
        job: Label of the model.
        activity: What is being done: ``training`` or the label of a condition.
        done: Epochs or samples done.
        of: Epochs or samples to do.
        finished: The record of a cell that has just been finished, or None.
        cell: Key of the cell that is worked on; empty in training.
    """

    job: str
    activity: str
    done: int = 0
    of: int = 0
    finished: Record | None = None
    cell: str = ""


Tell = Callable[[Progress], None]

LETHAL = ("crash", "time limit")
"""How the reasons of cells begin that cost their process."""


def lethal(record: Record | None) -> bool:
    """Whether a cell cost its process when it was last tried."""
    return record is not None and record.status == "failed" and (record.reason or "").partition(":")[0] in LETHAL


@dataclass(frozen=True)
class _Trained:
    """A trained model with its test images.

    Attributes:
        subjects: The model with and without its inference-time defenses, as far as they are needed.
        info: What is recorded of its training.
    """

    subjects: Mapping[bool, Subject]
    info: dict[str, Any]


def carry_out(plan: Plan, job: Job, cells: Sequence[Cell], tell: Tell, helpers: Helpers | None = None) -> None:
    """Do what a job has left to do; every cell ends as a record.

    Where plugins are loaded to judge, one cell is evaluated and the others are left.

    Args:
        plan: The plan that the job is of.
        job: The job.
        cells: Those of its cells that are to be done.
        tell: Called as work goes on.
        helpers: Where plugins are run; None to run them in this process.

    Raises:
        StoreError: If results cannot be kept.
    """
    from robbench.evaluation.scoring import without_result
    from robbench.training.trainer import Diverged, train_once

    require_float32(plan.device)
    store = Store(plan.request.out)
    labels = helpers.plugins if helpers else tuple(plugin.label for plugin in plan.registry.plugins())
    facts = provenance_of(plan.device, labels)
    tell = _only_here(tell)

    def keep(record: Record, *parts: Any) -> None:
        tell(Progress(job.label, record.spec.condition.label, cell=record.key))
        before = None if record.status == "done" else _standing(store, record.key)
        if before is not None:
            # It was done again for the sake of images or embeddings alone.
            warn(f"{job.label} · {record.spec.condition.label}: its result stays; doing it again: {record.reason}")
        kept = before or store.write_cell(record, *(parts or (None,)))
        tell(Progress(job.label, record.spec.condition.label, finished=kept, cell=record.key))

    wanted = [cell for cell in cells if not cell.refusal]
    # A model to ship has nothing to be scored on, and is trained all the same.
    shipped = not job.recipe.unseen
    trained: _Trained | None = None
    failure = ("", "")
    tell(Progress(job.label, "loading"))
    # A plugin may raise SystemExit and its like; the user's Ctrl-C does not reach workers.
    try:
        if not job.refusal and (wanted or shipped or not cells):
            train_once(job, store, plan.device, plan.request.precision, _reporter(tell, job, "training"))
        if wanted:
            trained = _load(job, wanted, store, plan.device)
        elif not cells and not job.refusal:
            _embed_training(job, store, plan.device)
    except StoreError:
        raise
    except Diverged as error:
        failure = ("unsupported", str(error))
    except BaseException as error:
        failure = ("failed", f"the model: {explain(error)}")
    for cell in cells:
        with store.lease("cells", cell.key):
            if store.finished(cell.key, cell.condition.keeps):
                # Another run has done it since this one looked.
                tell(Progress(job.label, cell.condition.label, finished=store.record(cell.key), cell=cell.key))
            elif cell.refusal and not (shipped and failure[0]):
                keep(without_result(cell, "unsupported", cell.refusal, facts))
            elif trained is None:
                keep(without_result(cell, *failure, facts))
            else:
                tell(Progress(job.label, cell.condition.label, cell=cell.key))
                try:
                    record, result = _evaluate(plan, job, cell, trained, store, facts, tell, helpers)
                except StoreError:
                    raise
                except BaseException as error:
                    keep(without_result(cell, "failed", reason(error), facts))
                else:
                    keep(record, result.outcome, result.extras)
                if helpers and helpers.task.loaded:
                    return


def _standing(store: Store, key: str) -> Record | None:
    """The record of a cell that is done, whatever it lacks beside its outcome."""
    return store.record(key) if store.finished(key) else None


def reason(error: BaseException) -> str:
    """Why a cell failed, in one line."""
    from robbench.execution.plugin_process import PluginFailure

    return str(error) if isinstance(error, PluginFailure) else explain(error)


def _only_here(tell: Tell) -> Tell:
    own = os.getpid()

    def told(progress: Progress) -> None:
        # A plugin that forked comes back twice; its copy must not go on as a second worker.
        if os.getpid() != own:
            os._exit(1)
        tell(progress)

    return told


def provenance_of(device: str, plugins: Sequence[str]) -> dict[str, Any]:
    """What the records of a run say they were made with.

    Args:
        device: Device type.
        plugins: Labels of the plugins of the run.
    """
    from robbench.evaluation.attack_run import ATTACK_BATCH
    from robbench.results.provenance import provenance
    from robbench.training.trainer import JUDGING_BATCH

    return {
        **provenance(device),
        "plugins": list(plugins),
        "batch": {"attacking": ATTACK_BATCH, "judging": JUDGING_BATCH},
    }


def _reporter(tell: Tell, job: Job, activity: str, cell: str = "") -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(job.label, activity, done, of, cell=cell))


def _load(job: Job, wanted: Sequence[Cell], store: Store, device: str) -> _Trained:
    """What the cells need of a trained model; keeps its embeddings of training images for figures."""
    from robbench.evaluation.subject import Subject
    from robbench.training.trainer import load_model

    test = job.data.samples("test")
    subjects = {
        defended: Subject.of(
            load_model(job, store, device, defended),
            test,
            num_classes=job.data.num_classes,
            class_names=job.data.splits.class_names,
            seed=job.seed,
            split_seed=job.data.choice.component.split_seed,
            device=device,
        )
        for defended in dict.fromkeys(not cell.condition.undefended for cell in wanted)
    }
    _embed_training(job, store, device)
    return _Trained(subjects, store.model_info(job.key))


def _embed_training(job: Job, store: Store, device: str) -> None:
    """Keep the embeddings of as many training images as the job's cells ask for, for figures."""
    from robbench.evaluation.artifacts import embedded, embeddings
    from robbench.training.trainer import load_model

    # Of all cells and not of those that are left, or the figures would tell where a run was interrupted.
    size = max((cell.condition.embed for cell in job.cells if not cell.refusal), default=0)
    path = store.model_dir(job.key) / EMBEDDINGS
    # Another grid may have asked for more; its board must not change.
    if min(size, len(job.data.splits.train)) > embedded(store, path):
        model = load_model(job, store, device, defended=True)
        samples = job.data.samples("train")
        seed = job.data.choice.component.split_seed
        store.write_archive(path, embeddings(model, samples, samples.images, size, seed, device))


def _evaluate(
    plan: Plan,
    job: Job,
    cell: Cell,
    trained: _Trained,
    store: Store,
    facts: dict[str, Any],
    tell: Tell,
    helpers: Helpers | None,
) -> tuple[Record, Result]:
    """Put the model to one condition and score what comes of it."""
    from robbench.evaluation.evaluator import evaluate
    from robbench.evaluation.scoring import done
    from robbench.training.trainer import load_model

    started = time.perf_counter()
    survivors = _survivors(store, cell) if cell.condition.survivors else None
    subject = trained.subjects[not cell.condition.undefended]
    report = _reporter(tell, job, cell.condition.label, cell.key)
    with helpers.attacker(cell) if helpers else nullcontext() as attack:
        jobs = {other.key: other for other in plan.jobs}
        peers = [] if attack else [load_model(jobs[key], store, plan.device) for key in cell.peers]
        result = evaluate(subject, cell.condition, report, peers, survivors, attack)
    seconds = time.perf_counter() - started
    if cell.condition.kind == "clean":
        result = replace(result, traits=(*result.traits, *_defended(job)))
    record = done(cell, result, trained.info, facts, seconds, plan.registry)
    if helpers:
        record = helpers.measured(record, result.outcome)
        record = record.model_copy(update={"notes": (*record.notes, *helpers.notes(cell))})
    return record, result


def _defended(job: Job) -> tuple[str, ...]:
    """What attacks must know of the model's inference-time defenses."""
    through = {component.gradients for component in in_front(job)} - {"exact", "expectation"}
    if not through:
        return ()
    return ("defense-in-the-way", "straight-through") if through == {"straight-through"} else ("defense-in-the-way",)


def _survivors(store: Store, cell: Cell) -> Ints:
    """Ids of the samples that are robust to every attack that the cell rests on.

    Raises:
        RequestError: If one of them has no result.
    """
    left: set[int] | None = None
    for key in cell.needs:
        record = store.record(key)
        outcome = store.outcome(record) if record is not None and record.status == "done" else None
        if outcome is None:
            raise RequestError("an attack whose survivors it is drawn from has no result")
        kept = {int(number) for number in outcome.ids[outcome.robust]}
        left = kept if left is None else left & kept
    return np.array(sorted(left or ()), dtype=np.int64)
