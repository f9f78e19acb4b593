"""What the rest of a plan will cost, in passes and, from what the store has timed, in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from robbench.planning.conditions import Condition
from robbench.planning.plan import Cell, Job, TrainedJob
from robbench.results.store import Store


@dataclass(frozen=True)
class Cost:
    """Forward and backward passes over single images, at the most, and a forecast of seconds where there is one."""

    forwards: float
    backwards: float
    seconds: float | None

    def __add__(self, other: Cost) -> Cost:
        """Both together; the forecast is lost where one of them has none."""
        known = self.seconds is not None and other.seconds is not None
        seconds = (self.seconds or 0.0) + (other.seconds or 0.0) if known else None
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards, seconds)


NOTHING = Cost(0.0, 0.0, 0.0)
_TIMED = 1000
"""Cells whose records are read for a forecast, about."""


@dataclass(frozen=True)
class Throughput:
    """Seconds per weighted pass (a backward pass counts twice), as the store has timed them."""

    training: float | None
    attacking: float | None

    @classmethod
    def of(cls, store: Store, jobs: Sequence[Job]) -> Throughput:
        """Throughput from the finished models and cells among some jobs; of many, from some of them."""
        trained, attacked = [0.0, 0.0], [0.0, 0.0]
        for job in jobs[:: 1 + sum(len(job.cells) for job in jobs) // _TIMED]:
            if isinstance(job, TrainedJob):
                if not store.has_model(job.key):
                    continue
                info = store.model_info(job.key)
                trained[0] += info["timings"]["training_seconds"]
                trained[1] += info["costs"]["forwards"] + 2 * info["costs"]["backwards"]
            for cell in job.cells:
                record = store.record(cell.key) if store.finished(cell.key) else None
                if record is not None and record.status == "done":
                    attacked[0] += record.timings["seconds"]
                    attacked[1] += _weight(cell.condition, job.data.num_classes) * _samples(job, cell)
        return cls(*(time / work if work else None for time, work in (trained, attacked)))


def cost(job: Job, cells: Iterable[Cell], store: Store, rates: Throughput) -> Cost:
    """What a job has left to do, its training included unless it is trained."""
    total = NOTHING
    classes = job.data.num_classes
    if isinstance(job, TrainedJob) and not store.has_model(job.key) and not job.refusal:
        forwards, backwards = _training_passes(job)
        seconds = None if rates.training is None else rates.training * (forwards + 2 * backwards)
        total += Cost(forwards, backwards, seconds)
    for cell in cells:
        if cell.refusal:
            continue
        samples = _samples(job, cell)
        forwards, backwards = _passes(cell.condition, classes)
        forwards += len(cell.peers)
        weight = _weight(cell.condition, classes)
        seconds = None if rates.attacking is None else rates.attacking * weight * samples
        total += Cost(forwards * samples, backwards * samples, seconds)
    return total


def weights(job: Job, cells: Iterable[Cell], store: Store) -> tuple[float, dict[str, float]]:
    """How much of a job's work is training, and each of its cells: weighted passes, a backward pass counting twice.

    Args:
        job: The job.
        cells: Those of its cells that are to be done.
        store: Where models are that need no training.
    """
    classes = job.data.num_classes
    each = {cell.key: 0.0 if cell.refusal else _weight(cell.condition, classes) * _samples(job, cell) for cell in cells}
    training = cost(job, (), store, Throughput(None, None))
    return training.forwards + 2 * training.backwards, each


def _training_passes(job: TrainedJob) -> tuple[float, float]:
    images = len(job.data.splits.train) * job.recipe.epochs
    images = max(images, job.recipe.min_steps * job.recipe.batch_size)
    defenses = [choice.component for choice in job.defenses]
    images *= max((defense.steps_per_batch() for defense in defenses), default=1)
    added = [defense.passes(job.data.num_classes) for defense in defenses]
    # A defense may ask for the loss, and so for what those after it add, as often as for passes.
    return float(images * prod(1 + f for f, _ in added)), float(images * prod(1 + b for _, b in added))


def _samples(job: Job, cell: Cell) -> int:
    return min(len(job.data.splits.test), cell.condition.sample or len(job.data.splits.test))


def _passes(condition: Condition, classes: int) -> tuple[float, float]:
    found = [stage.attack.component.passes(classes) for stage in condition.stages]
    found += [condition.proof.method.component.passes(classes)] if condition.proof else []
    times = condition.draws * (classes - 1 if condition.target == "all" else 1)
    return float(times * sum(f for f, _ in found)), float(times * sum(b for _, b in found))


def _weight(condition: Condition, classes: int) -> float:
    forwards, backwards = _passes(condition, classes)
    # The two passes of judging every draw are work as well; a union follows from what others judged.
    return forwards + 2 * backwards + (0 if condition.union else 2 * condition.draws)
