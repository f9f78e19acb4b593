"""Carrying out one job: its model is trained, loaded, put to its conditions; every cell ends as a record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from robbench.core.device import prepare_device
from robbench.core.errors import Damaged, StoreError, explain, trace_of, warn
from robbench.data.lazy_images import LazyImages
from robbench.execution.ready import (
    Ready,
    asked_model,
    embed_training,
    in_the_way,
    needed_outcomes,
    provenance_of,
    survivors_of,
)
from robbench.execution.tasks import Failure, Judged, Predicted, Way
from robbench.planning.plan import Cell, Job, Plan, TrainedJob
from robbench.results.schema import Record, Training
from robbench.results.store import EMBEDDINGS, Store

if TYPE_CHECKING:
    from robbench.evaluation.evaluator import Result
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


def cost_its_process(store: Store, cell: Cell) -> bool:
    """Whether a cell of a store cost its process when it was last tried."""
    with suppress(Damaged):
        return lethal(store.record(cell.key))
    return False


def carry_out(plan: Plan, job: Job, cells: Sequence[Cell], tell: Tell) -> None:
    """Do what a job has left to do in this process, and write it down; every cell ends as a record.

    Args:
        plan: The plan that the job is of.
        job: The job.
        cells: Those of its cells that are to be done.
        tell: Called as work goes on.

    Raises:
        StoreError: If results cannot be kept.
    """
    prepare_device(plan.device, plan.request.deterministic)
    store, check = Store(plan.request.out), only_here()
    facts = provenance_of(plan.device, tuple(plugin.label for plugin in plan.registry.plugins()), job)
    tell(Progress(job.label, "loading"))
    ready: Ready | None = None
    found = train_model(plan, job, store, tell, here=True) if to_train(job, cells) else None
    if found is None and to_predict(job, cells):
        store.drop_damaged(store.model_dir(job.key) / EMBEDDINGS)
        made = predict(plan, job, ways(job, cells), store, here=True)
        found, ready = (made, None) if isinstance(made, Failure) else (None, made)
    if ready is not None:
        keep_embeddings(store, job, ready.predicted)
    if found is not None and not cells:
        warn(f"{job.label}: {found.reason}")
    for cell in cells:
        with store.lease("cells", cell.key):
            if store.finished(cell.key, cell.condition.keeps):
                # Another run has done it since this one looked.
                tell(told(job, cell, store.record(cell.key)))
                continue
            judged = without_model(job, cell, found, facts)
            if judged is None:
                assert ready is not None
                judged = judge(ready, cell, facts, tell)
            check()
            tell(told(job, cell, keep(store, cell, judged), judged.trace))


def only_here() -> Callable[[], None]:
    """Ends any other process that calls it: a plugin that forked comes back twice, and must not go on as a second."""
    own = os.getpid()

    def check() -> None:
        if os.getpid() != own:
            os._exit(1)

    return check


def to_train(job: Job, cells: Sequence[Cell]) -> bool:
    """Whether a job's model is to be trained for some of its cells, or for others where there are none."""
    # A model to ship has nothing to be scored on, and is trained all the same.
    wanted = not cells or not job.unseen or any(not cell.refusal for cell in cells)
    return isinstance(job, TrainedJob) and not job.refusal and wanted


def to_predict(job: Job, cells: Sequence[Cell]) -> bool:
    """Whether a job's model is to be asked about its clean images, or to embed training images."""
    return any(not cell.refusal for cell in cells) or not (cells or job.refusal)


def ways(job: Job, cells: Sequence[Cell]) -> tuple[Way, ...]:
    """The ways in which cells ask their model."""
    return tuple(dict.fromkeys(way(job, cell) for cell in cells if not cell.refusal and not cell.condition.union))


def way(job: Job, cell: Cell) -> Way:
    """The way in which a cell asks its model.

    All of a small data set, so that its predictions on clean images are the same in every cell.
    """
    size = cell.condition.sample
    if cell.condition.survivors:
        # What is left of others' samples is no sample by itself.
        size = next(other.condition.sample for other in job.cells if other.key in cell.needs)
    lazy = isinstance(job.data.decoded.images, LazyImages)
    return not cell.condition.undefended, size if lazy else None


def told(job: Job, cell: Cell, finished: Record | None = None, trace: str = "") -> Progress:
    """Says that a cell is begun, or that it is finished."""
    return Progress(job.label, cell.condition.label, finished=finished, cell=cell.key, trace=trace)


def train_model(plan: Plan, job: Job, store: Store, tell: Tell, here: bool = False) -> Failure | None:
    """Train a job's model unless that is done.

    Args:
        plan: The plan.
        job: The job.
        store: Where the model is kept.
        tell: Called after every epoch.
        here: Whether Ctrl-C reaches this process.

    Returns:
        Why there is no model; None where there is one.
    """
    from robbench.training.trainer import train_once

    assert isinstance(job, TrainedJob)
    with _failing(here) as failure:
        train_once(job, store, plan.device, plan.request.precision, _reporter(tell, job, "training"))
    return failure[0] if failure else None


def predict(plan: Plan, job: Job, asked: Sequence[Way], store: Store, here: bool = False) -> Ready | Failure:
    """Ask a job's model about its clean images.

    Args:
        plan: The plan.
        job: The job.
        asked: The ways in which its cells ask it; none where only embeddings are asked for.
        store: Where the model is.
        here: Whether Ctrl-C reaches this process.
    """
    from robbench.evaluation.model_size import ModelSize, model_size
    from robbench.training.model_loading import load_model

    with _failing(here) as failure:
        subjects = {one: asked_model(plan, job, store, one) for one in asked}
        embeddings = embed_training(job, store, plan.device)
        size = ModelSize()
        if job.cells:
            loaded = (subject.model for (defended, _), subject in subjects.items() if defended)
            model = next(loaded, None) or load_model(job, store, plan.device)
            size = model_size(model, tuple(job.data.decoded.images.shape[1:]), plan.device)
        clean = {one: subject.clean.numpy() for one, subject in subjects.items()}
        return Ready(plan, job, store, Predicted(clean, size, embeddings), subjects)
    return failure[0]


@contextmanager
def _failing(here: bool) -> Iterator[list[Failure]]:
    """Turns what keeps a model from being had into a failure; a plugin may raise SystemExit and its like."""
    from robbench.training.trainer import Diverged

    found: list[Failure] = []
    try:
        yield found
    except StoreError:
        raise
    except Diverged as error:
        found.append(Failure("unsupported", str(error)))
    except BaseException as error:
        if here and isinstance(error, KeyboardInterrupt):
            raise
        found.append(Failure("failed", f"the model: {explain(error)}", trace_of(error)))


def without_model(job: Job, cell: Cell, failure: Failure | None, facts: dict[str, Any]) -> Judged | None:
    """What comes of a cell that is refused, or whose model failed; None for one that is to be judged."""
    from robbench.evaluation.scoring import without_result

    if cell.refusal and (job.unseen or failure is None):
        return Judged(without_result(cell, "unsupported", cell.refusal, facts))
    if failure is None:
        return None
    return Judged(without_result(cell, failure.status, failure.reason, facts), trace=failure.trace)


def judge(ready: Ready, cell: Cell, facts: dict[str, Any], tell: Tell, helpers: Helpers | None = None) -> Judged:
    """Put a model to one condition, and score what comes of it.

    Args:
        ready: The model.
        cell: The cell.
        facts: Provenance.
        tell: Called after every batch.
        helpers: Where plugins are run; None to run them in this process.
    """
    from robbench.core.certificate import NoCertificate
    from robbench.evaluation.scoring import without_result
    from robbench.training.trainer import Diverged

    try:
        if not cell.condition.union:
            ready.subject(way(ready.job, cell))
        tell(told(ready.job, cell))  # a plugin that forked while its model was loaded goes no further
        record, result = _evaluate(ready, cell, facts, tell, helpers)
        return Judged(record, result.outcome, result.extras)
    except StoreError:
        raise
    except (Diverged, NoCertificate) as error:
        return Judged(without_result(cell, "unsupported", str(error), facts))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and helpers is None:
            raise
        return Judged(without_result(cell, "failed", reason(error), facts), trace=_trace(error))


def keep(store: Store, cell: Cell, judged: Judged) -> Record:
    """Write down what came of a cell; where nothing did and it was done before, what it came to then stays.

    It was tried again for want of what figures are drawn from.

    Args:
        store: Where it is written; the caller holds the cell's lease.
        cell: The cell.
        judged: What came of it.

    Returns:
        The record that stands.
    """
    record = judged.record
    if judged.outcome is not None:
        return store.write_cell(record, judged.outcome, judged.extras)
    done = store.done(cell.key)
    if done is None:
        return store.write_cell(record, None)
    spec = record.spec
    warn(
        f"{spec.model.label} · {spec.condition.label} was not done again: {record.reason}; what it came to before stays"
    )
    return done


def keep_embeddings(store: Store, job: Job, predicted: Predicted) -> None:
    """Write down the embeddings of training images that came with a model's predictions."""
    if predicted.embeddings is not None:
        store.write_archive(store.model_dir(job.key) / EMBEDDINGS, predicted.embeddings)


def reason(error: BaseException) -> str:
    """Why a cell failed, in one line."""
    from robbench.execution.plugin_process import PluginFailure

    return str(error) if isinstance(error, PluginFailure) else explain(error)


def _trace(error: BaseException) -> str:
    """The traceback of what failed a cell, where a plugin ran if it was one."""
    from robbench.execution.plugin_process import PluginFailure

    return error.trace if isinstance(error, PluginFailure) else trace_of(error)


def _reporter(tell: Tell, job: Job, activity: str, cell: str = "") -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(job.label, activity, done, of, cell=cell))


def _evaluate(
    ready: Ready, cell: Cell, facts: dict[str, Any], tell: Tell, helpers: Helpers | None
) -> tuple[Record, Result]:
    """Put the model to one condition and score what comes of it."""
    from robbench.evaluation.evaluator import Result, evaluate
    from robbench.evaluation.scoring import done
    from robbench.evaluation.verdicts import union
    from robbench.training.model_loading import load_model
    from robbench.training.trainer import require_trained

    plan, job, store = ready.plan, ready.job, ready.store
    started = time.perf_counter()
    if cell.condition.union:
        result = Result(union(needed_outcomes(store, cell)), {}, (), ())
    else:
        survivors = survivors_of(store, cell) if cell.condition.survivors else None
        subject = ready.subject(way(ready.job, cell))
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
        result = replace(result, traits=(*result.traits, *in_the_way(job)))
    training, notes = None, job.notes
    if isinstance(job, TrainedJob):
        info = store.model_info(job.key)
        training, notes = Training.of(info), tuple(info["notes"])
    record = done(cell, result, training, ready.predicted.size, notes, facts, seconds, plan.registry)
    if helpers:
        record = helpers.measured(record, result.outcome)
        record = record.model_copy(update={"notes": (*record.notes, *helpers.notes(cell))})
    return record, result
