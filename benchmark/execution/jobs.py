"""Carrying out one job: its model is trained, loaded, put to its conditions; every cell ends as a record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.device import prepare_device
from robbench.core.errors import RequestError, StoreError, explain, trace_of, warn
from robbench.data.lazy_images import LazyImages
from robbench.planning.plan import Cell, Job, Plan, TrainedJob, in_front
from robbench.results.schema import Ints, Outcome, Record, Training
from robbench.results.store import EMBEDDINGS, Store

if TYPE_CHECKING:
    from robbench.evaluation.evaluator import Result
    from robbench.evaluation.model_size import ModelSize
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
        trace: The traceback of a cell that failed, where it is known; it is shown and kept nowhere.
    """

    job: str
    activity: str
    done: int = 0
    of: int = 0
    finished: Record | None = None
    cell: str = ""
    trace: str = ""


Tell = Callable[[Progress], None]

LETHAL = ("crash", "time limit")
"""How the reasons of cells begin that cost their process."""


def lethal(record: Record | None) -> bool:
    """Whether a cell cost its process when it was last tried."""
    return record is not None and record.status == "failed" and (record.reason or "").partition(":")[0] in LETHAL


@dataclass(frozen=True)
class _Ready:
    """A model with its test images.

    Attributes:
        subjects: The model with and without its inference-time defenses, and the test images that it is asked about,
            as far as they are needed; see ``_subject``.
        training: What went into it; None where others trained it.
        size: How large it is with its inference-time defenses.
        notes: What its records should say of it.
    """

    subjects: Mapping[tuple[bool, int | None], Subject]
    training: Training | None
    size: ModelSize
    notes: tuple[str, ...]


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
    from robbench.core.certificate import NoCertificate
    from robbench.training.trainer import Diverged, train_once

    prepare_device(plan.device, plan.request.deterministic)
    store = Store(plan.request.out)
    labels = helpers.plugins if helpers else tuple(plugin.label for plugin in plan.registry.plugins())
    facts = provenance_of(plan.device, labels, job)
    tell = _only_here(tell)

    def show(cell: Cell, finished: Record | None = None, trace: str = "") -> None:
        tell(Progress(job.label, cell.condition.label, finished=finished, cell=cell.key, trace=trace))

    def fail(cell: Cell, status: str, why: str, trace: str = "") -> None:
        show(cell)  # a plugin that forked must not write a second time
        show(cell, without_outcome(store, cell, status, why, facts), trace)

    wanted = [cell for cell in cells if not cell.refusal]
    # A model to ship has nothing to be scored on, and is trained all the same.
    shipped = not job.unseen
    ready: _Ready | None = None
    failure, trace = ("", ""), ""
    tell(Progress(job.label, "loading"))
    # A plugin may raise SystemExit and its like; the user's Ctrl-C does not reach workers.
    try:
        if isinstance(job, TrainedJob) and not job.refusal and (wanted or shipped or not cells):
            train_once(job, store, plan.device, plan.request.precision, _reporter(tell, job, "training"))
        if wanted:
            ready = _load(job, wanted, store, plan.device)
        elif not cells and not job.refusal:
            _embed_training(job, store, plan.device)
    except StoreError:
        raise
    except Diverged as error:
        failure = ("unsupported", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and helpers is None:
            raise
        failure, trace = ("failed", f"the model: {explain(error)}"), trace_of(error)
    if failure[0] and not cells:
        warn(f"{job.label}: {failure[1]}")
    for cell in cells:
        with store.lease("cells", cell.key):
            if store.finished(cell.key, cell.condition.keeps):
                # Another run has done it since this one looked.
                show(cell, store.record(cell.key))
            elif cell.refusal and not (shipped and failure[0]):
                fail(cell, "unsupported", cell.refusal)
            elif ready is None:
                fail(cell, *failure, trace)
            else:
                show(cell)
                try:
                    record, result = _evaluate(plan, job, cell, ready, store, facts, tell, helpers)
                except StoreError:
                    raise
                except (Diverged, NoCertificate) as error:
                    fail(cell, "unsupported", str(error))
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and helpers is None:
                        raise
                    fail(cell, "failed", reason(error), _trace(error))
                else:
                    show(cell)
                    show(cell, store.write_cell(record, result.outcome, result.extras))
                if helpers and helpers.task.loaded:
                    return


def without_outcome(store: Store, cell: Cell, status: str, why: str, facts: dict[str, Any]) -> Record:
    """Write down that nothing came of a cell, unless it was done before: then its record stays.

    It was tried again for want of what figures are drawn from.

    Args:
        store: Where it is written; the caller holds the cell's lease.
        cell: The cell.
        status: ``failed`` or ``unsupported``.
        why: The reason.
        facts: Provenance.

    Returns:
        The record that stands.
    """
    from robbench.evaluation.scoring import without_result

    record = without_result(cell, status, why, facts)
    done = store.done(cell.key)
    if done is None:
        return store.write_cell(record, None)
    spec = record.spec
    warn(f"{spec.model.label} · {spec.condition.label} was not done again: {why}; what it came to before stays")
    return done


def reason(error: BaseException) -> str:
    """Why a cell failed, in one line."""
    from robbench.execution.plugin_process import PluginFailure

    return str(error) if isinstance(error, PluginFailure) else explain(error)


def _trace(error: BaseException) -> str:
    """The traceback of what failed a cell, where a plugin ran if it was one."""
    from robbench.execution.plugin_process import PluginFailure

    return error.trace if isinstance(error, PluginFailure) else trace_of(error)


def _only_here(tell: Tell) -> Tell:
    own = os.getpid()

    def told(progress: Progress) -> None:
        # A plugin that forked comes back twice; its copy must not go on as a second worker.
        if os.getpid() != own:
            os._exit(1)
        tell(progress)

    return told


def provenance_of(device: str, plugins: Sequence[str], job: Job) -> dict[str, Any]:
    """What the records of a run say they were made with.

    Args:
        device: Device type.
        plugins: Labels of the plugins of the run.
        job: Whose images are attacked.
    """
    from robbench.evaluation.attack_run import attack_batch
    from robbench.results.provenance import provenance
    from robbench.training.judging import JUDGING_BATCH

    return {
        **provenance(device),
        "plugins": list(plugins),
        "batch": {"attacking": attack_batch(job.data.decoded.images.shape[1:]), "judging": JUDGING_BATCH},
    }


def _reporter(tell: Tell, job: Job, activity: str, cell: str = "") -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(job.label, activity, done, of, cell=cell))


def _load(job: Job, wanted: Sequence[Cell], store: Store, device: str) -> _Ready:
    """What the cells need of a model; keeps its embeddings of training images for figures."""
    from robbench.evaluation.model_size import model_size
    from robbench.evaluation.subject import Subject
    from robbench.training.model_loading import load_model

    subjects = {
        (defended, sample): Subject.of(
            load_model(job, store, device, defended),
            job.data.tested(sample),
            num_classes=job.data.num_classes,
            class_names=job.data.splits.class_names,
            seed=job.seed,
            split_seed=job.data.choice.component.split_seed,
            device=device,
        )
        for defended, sample in dict.fromkeys(_subject(job, cell) for cell in wanted if not cell.condition.union)
    }
    _embed_training(job, store, device)
    loaded = (subject.model for (defended, _), subject in subjects.items() if defended)
    model = next(loaded, None) or load_model(job, store, device)
    size = model_size(model, tuple(job.data.decoded.images.shape[1:]), device)
    if not isinstance(job, TrainedJob):
        return _Ready(subjects, None, size, job.notes)
    info = store.model_info(job.key)
    return _Ready(subjects, Training.of(info), size, tuple(info["notes"]))


def _subject(job: Job, cell: Cell) -> tuple[bool, int | None]:
    """Whether a cell is about the defended model, and how many of the test images it is asked about; None for all.

    All of a small data set, so that its predictions on clean images are the same in every cell.
    """
    size = cell.condition.sample
    if cell.condition.survivors:
        # What is left of others' samples is no sample by itself.
        size = next(other.condition.sample for other in job.cells if other.key in cell.needs)
    lazy = isinstance(job.data.decoded.images, LazyImages)
    return not cell.condition.undefended, size if lazy else None


def _embed_training(job: Job, store: Store, device: str) -> None:
    """Keep the embeddings of as many training images as the job's cells ask for, for figures."""
    from robbench.data.splits import stratified
    from robbench.evaluation.artifacts import embedded, embeddings
    from robbench.training.model_loading import load_model

    # Of all cells and not of those that are left, or the figures would tell where a run was interrupted.
    size = max((cell.condition.embed for cell in job.cells if not cell.refusal), default=0)
    path = store.model_dir(job.key) / EMBEDDINGS
    store.drop_damaged(path)
    # Another grid may have asked for more; its board must not change.
    if min(size, len(job.data.splits.train)) > embedded(store, path):
        model = load_model(job, store, device, defended=True)
        splits = job.data.splits
        chosen = stratified(splits.labels[splits.train], size, job.data.choice.component.split_seed)
        samples = splits.take(job.data.decoded, splits.train[chosen])
        store.write_archive(path, embeddings(model, samples, samples.images, device))


def _evaluate(
    plan: Plan,
    job: Job,
    cell: Cell,
    ready: _Ready,
    store: Store,
    facts: dict[str, Any],
    tell: Tell,
    helpers: Helpers | None,
) -> tuple[Record, Result]:
    """Put the model to one condition and score what comes of it."""
    from robbench.evaluation.evaluator import Result, evaluate
    from robbench.evaluation.scoring import done
    from robbench.evaluation.verdicts import union
    from robbench.training.model_loading import load_model
    from robbench.training.trainer import require_trained

    started = time.perf_counter()
    if cell.condition.union:
        result = Result(union(_needed(store, cell)), {}, (), ())
    else:
        survivors = _survivors(store, cell) if cell.condition.survivors else None
        subject = ready.subjects[_subject(job, cell)]
        report = _reporter(tell, job, cell.condition.label, cell.key)
        jobs = {other.key: other for other in plan.jobs}
        for key in cell.peers:
            if isinstance(jobs[key], TrainedJob):
                require_trained(store, key, "it works through")
        with helpers.attacker(cell) if helpers else nullcontext() as attack:
            through = cell.peers if cell.condition.needs_peers and not attack else ()
            peers = [load_model(jobs[key], store, plan.device) for key in through]
            result = evaluate(subject, cell.condition, report, peers, survivors, attack)
    seconds = time.perf_counter() - started
    if cell.condition.kind == "clean":
        result = replace(result, traits=(*result.traits, *_defended(job)))
    record = done(cell, result, ready.training, ready.size, ready.notes, facts, seconds, plan.registry)
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


def _needed(store: Store, cell: Cell) -> list[Outcome]:
    """The outcomes of the cells that a cell rests on.

    Raises:
        RequestError: If one of them has no result.
    """
    found = []
    for key in cell.needs:
        record = store.record(key)
        outcome = store.outcome(record) if record is not None and record.status == "done" else None
        if outcome is None:
            what = record.spec.condition.label if record is not None else f"cell {key}"
            raise RequestError(f"{what}, which it rests on, has no result")
        found.append(outcome)
    return found


def _survivors(store: Store, cell: Cell) -> Ints:
    """Ids of the samples that are robust to every attack that the cell rests on.

    Raises:
        RequestError: If one of them has no result.
    """
    left: set[int] | None = None
    for outcome in _needed(store, cell):
        kept = {int(number) for number in outcome.ids[outcome.robust]}
        left = kept if left is None else left & kept
    return np.array(sorted(left or ()), dtype=np.int64)
