"""A model that can be asked, and what its cells rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robbench.core.errors import RequestError
from robbench.execution.tasks import Predicted, Way
from robbench.planning.plan import Cell, Job, Plan, in_front
from robbench.results.schema import Ints, Outcome
from robbench.results.store import EMBEDDINGS, Store

if TYPE_CHECKING:
    from robbench.evaluation.subject import Subject


@dataclass(frozen=True)
class Ready:
    """A model with its test images.

    Attributes:
        plan: The plan.
        job: The model's job.
        store: Where its weights are.
        predicted: What its cells share.
        subjects: The model by the ways in which it was asked so far.
    """

    plan: Plan
    job: Job
    store: Store
    predicted: Predicted
    subjects: dict[Way, Subject] = field(default_factory=dict)

    def subject(self, asked: Way) -> Subject:
        """The model, loaded when it is first asked for."""
        if asked not in self.subjects:
            clean = torch.from_numpy(self.predicted.clean[asked])
            self.subjects[asked] = asked_model(self.plan, self.job, self.store, asked, clean)
        return self.subjects[asked]


def asked_model(plan: Plan, job: Job, store: Store, asked: Way, clean: Tensor | None = None) -> Subject:
    """A job's model with its test images, and its predictions on them unless they are known."""
    from robbench.evaluation.subject import Subject
    from robbench.training.model_loading import load_model

    defended, size = asked
    return Subject.of(
        load_model(job, store, plan.device, defended),
        job.data.tested(size),
        clean,
        num_classes=job.data.num_classes,
        class_names=job.data.splits.class_names,
        seed=job.seed,
        split_seed=job.data.choice.component.split_seed,
        device=plan.device,
    )


def embed_training(job: Job, store: Store, device: str) -> bytes | None:
    """Embeddings of as many training images as the job's cells ask for, for figures; None where there are enough."""
    from robbench.data.splits import stratified
    from robbench.evaluation.artifacts import embedded, embeddings
    from robbench.training.model_loading import load_model

    # Of all cells and not of those that are left, or the figures would tell where a run was interrupted.
    size = max((cell.condition.embed for cell in job.cells if not cell.refusal), default=0)
    # Another grid may have asked for more; its board must not change.
    if min(size, len(job.data.splits.train)) <= embedded(store, store.model_dir(job.key) / EMBEDDINGS):
        return None
    model = load_model(job, store, device, defended=True)
    splits = job.data.splits
    chosen = stratified(splits.labels[splits.train], size, job.data.choice.component.split_seed)
    samples = splits.take(job.data.decoded, splits.train[chosen])
    return embeddings(model, samples, samples.images, device)


def provenance_of(device: str, plugins: Sequence[str], job: Job) -> dict[str, Any]:
    """What the records of a run say they were made with.

    Args:
        device: Device type.
        plugins: Labels of the plugins of the run.
        job: Whose images are attacked.
    """
    from robbench.core.batches import fitting
    from robbench.evaluation.attack_run import attack_batch
    from robbench.results.provenance import provenance
    from robbench.training.judging import JUDGING_BATCH

    shape = job.data.decoded.images.shape[1:]
    sizes = {"attacking": attack_batch(shape), "judging": JUDGING_BATCH}
    return {
        **provenance(device),
        "plugins": list(plugins),
        "batch": {what: fitting(size, shape, device) for what, size in sizes.items()},
    }


def in_the_way(job: Job) -> tuple[str, ...]:
    """What attacks must know of the model's inference-time defenses."""
    through = {component.gradients for component in in_front(job)} - {"exact", "expectation"}
    if not through:
        return ()
    return ("defense-in-the-way", "straight-through") if through == {"straight-through"} else ("defense-in-the-way",)


def needed_outcomes(store: Store, cell: Cell) -> list[Outcome]:
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


def survivors_of(store: Store, cell: Cell) -> Ints:
    """Ids of the samples that are robust to every attack that the cell rests on.

    Raises:
        RequestError: If one of them has no result.
    """
    left: set[int] | None = None
    for outcome in needed_outcomes(store, cell):
        kept = {int(number) for number in outcome.ids[outcome.robust]}
        left = kept if left is None else left & kept
    return np.array(sorted(left or ()), dtype=np.int64)
