"""Carrying out one job: train its model unless it is trained, then evaluate the cells that are not done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robbench.core.atomic_io import write_atomically
from robbench.core.device import require_float32
from robbench.core.errors import RequestError, StoreError, explain
from robbench.planning.plan import Cell, Job, Plan, in_front
from robbench.results.schema import Ints, Record
from robbench.results.store import EMBEDDINGS, Store

if TYPE_CHECKING:
    from robbench.evaluation.subject import Subject


@dataclass(frozen=True)
class Progress:
    """Something that happened, told to whoever shows it.

    Attributes:
        job: Label of the model.
        activity: What is being done: ``training`` or the label of a condition.
        done: Epochs or samples done.
        of: Epochs or samples to do.
        finished: The record of a cell that has just been finished, or None.
    """

    job: str
    activity: str
    done: int = 0
    of: int = 0
    finished: Record | None = None


Tell = Callable[[Progress], None]


def carry_out(plan: Plan, job: Job, cells: Sequence[Cell], tell: Tell) -> None:
    """Do what a job has left to do; every cell ends as a record.

    Args:
        plan: The plan that the job is of.
        job: The job.
        cells: Those of its cells that are to be done.
        tell: Called as work goes on.

    Raises:
        StoreError: If results cannot be kept.
    """
    from robbench.evaluation.attack_run import ATTACK_BATCH
    from robbench.evaluation.evaluator import evaluate
    from robbench.evaluation.scoring import done, without_result
    from robbench.results.provenance import provenance
    from robbench.training.trainer import JUDGING_BATCH, Diverged, load_model, train

    store = Store(plan.request.out)
    label = f"{job.data.choice.label} · {job.spec.label} · seed {job.seed}"
    facts = {
        **provenance(plan.device),
        "plugins": [plugin.label for plugin in plan.registry.plugins()],
        "batch": {"attacking": ATTACK_BATCH, "judging": JUDGING_BATCH},
    }

    def finish(record: Record, *parts: Any) -> None:
        outcome, extras = parts or (None, None)
        tell(Progress(label, record.spec.condition.label, finished=store.write_cell(record, outcome, extras)))

    wanted = [cell for cell in cells if not cell.refusal]
    refused = [cell for cell in cells if cell.refusal]
    # A model to ship has nothing to be scored on, and is trained all the same.
    shipped = not job.recipe.unseen
    at_stake = cells if shipped else wanted
    if not shipped:
        for cell in refused:
            finish(without_result(cell, "unsupported", str(cell.refusal), facts))
    device = plan.device
    require_float32(device)
    try:
        if not job.refusal and (at_stake or not cells) and not store.has_model(job.key):
            train(job, store, device, plan.request.precision, lambda at, of: tell(Progress(label, "training", at, of)))
        subjects = {
            defended: _subject(job, store, device, defended)
            for defended in dict.fromkeys(not cell.condition.undefended for cell in wanted)
        }
        if wanted:
            _embed_training(job, store, device)
    except StoreError:
        raise
    except Diverged as error:
        for cell in at_stake:
            finish(without_result(cell, "unsupported", str(error), facts))
        return
    except Exception as error:
        for cell in at_stake:
            finish(without_result(cell, "failed", f"the model: {explain(error)}", facts))
        return
    if shipped:
        for cell in refused:
            finish(without_result(cell, "unsupported", str(cell.refusal), facts))
    if not wanted:
        return
    info = store.model_info(job.key)
    seen = _defended(job)
    others = {other.key: other for other in plan.jobs}
    for cell in wanted:
        started = time.perf_counter()
        try:
            peers = [load_model(others[key], store, device) for key in cell.peers]
            survivors = _survivors(store, cell) if cell.condition.survivors else None
            subject = subjects[not cell.condition.undefended]
            result = evaluate(subject, cell.condition, _reporter(tell, label, cell), peers, survivors)
            seconds = time.perf_counter() - started
            if cell.condition.kind == "clean":
                result = replace(result, traits=(*result.traits, *seen))
            record = done(cell, result, info, facts, seconds, plan.registry)
        except Exception as error:
            finish(without_result(cell, "failed", explain(error), facts))
        else:
            finish(record, result.outcome, result.extras)


def _subject(job: Job, store: Store, device: str, defended: bool) -> Subject:
    from robbench.evaluation.subject import Subject
    from robbench.training.trainer import load_model

    splits = job.data.splits
    return Subject.of(
        load_model(job, store, device, defended),
        splits.take(job.data.source, splits.test),
        num_classes=job.data.num_classes,
        class_names=splits.class_names,
        seed=job.seed,
        split_seed=job.data.choice.component.split_seed,
        device=device,
    )


def _embed_training(job: Job, store: Store, device: str) -> None:
    """Keep the embeddings of as many training images as the job's cells ask for, for figures."""
    from robbench.evaluation.artifacts import embedded, embeddings
    from robbench.training.trainer import load_model

    # Of all cells and not of those that are left, or the figures would tell where a run was interrupted.
    size = max(cell.condition.embed for cell in job.cells if not cell.refusal)
    path = store.model_dir(job.key) / EMBEDDINGS
    # Another grid may have asked for more; its board must not change.
    if min(size, len(job.data.splits.train)) > embedded(path):
        model = load_model(job, store, device, defended=True)
        samples = job.data.splits.take(job.data.source, job.data.splits.train)
        seed = job.data.choice.component.split_seed
        write_atomically(path, embeddings(model, samples, samples.images, size, seed, device))


def _defended(job: Job) -> tuple[str, ...]:
    """What attacks must know of the defenses that stand in front of the model."""
    through = {component.gradients for component in in_front(job)} - {"exact", "expectation"}
    if not through:
        return ()
    return ("defense-in-the-way", "straight-through") if through == {"straight-through"} else ("defense-in-the-way",)


def _survivors(store: Store, cell: Cell) -> Ints:
    """Ids of the samples that every attack that the cell rests on has left.

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


def _reporter(tell: Tell, label: str, cell: Cell) -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(label, cell.condition.label, done, of))
