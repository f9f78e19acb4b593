"""Training a model of the grid: from its recipe to weights, resumable after any epoch."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from robbench.core.contracts import Classifier, Defense, Samples, joined, to_float
from robbench.core.errors import Damaged, RequestError, explain, warn
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.core.sample_rng import Streams, digest64
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch
from robbench.data.splits import stratified
from robbench.planning.plan import TrainedJob
from robbench.results.provenance import provenance
from robbench.results.store import CHECKPOINT, Store
from robbench.training.accumulation import Accumulation
from robbench.training.balancing import augmented, check_inside, class_weights, resampled
from robbench.training.composition import compose
from robbench.training.early_stopping import WATCHED, early_end, robust_accuracy, watched
from robbench.training.history import Epoch, as_csv, kept, score
from robbench.training.judging import accuracies, mean_loss
from robbench.training.network import BACKBONE, NormalizedBackbone, build, pixel_statistics, warm_start
from robbench.training.optimizer import make_optimizer, make_scheduler
from robbench.training.passes import TrainingPasses, counted
from robbench.training.recipe import Keep


class Diverged(Exception):
    """The training or the validation loss is no longer a finite number."""


def trained_model(job: TrainedJob, store: Store) -> Classifier:
    """The job's trained model, without its inference-time defenses."""
    labels = torch.from_numpy(job.data.splits.labels[job.data.splits.gallery])
    channels = job.data.decoded.images.shape[1]
    model = build(job, labels, torch.zeros(channels), torch.ones(channels))
    model.load_state_dict(load(store.weights(job.key)))
    return model


def train_once(
    job: TrainedJob,
    store: Store,
    device: str,
    precision: str,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Train a job's model unless that is done, by this or by another run that is at it; see ``train``."""
    with store.lease("models", job.key):
        if not store.has_model(job.key):
            train(job, store, device, precision, report)


def require_trained(store: Store, key: str, what: str) -> None:
    """See that a model is trained that another one rests on.

    Args:
        store: Where models live.
        key: The model.
        what: What rests on it, for the message: "it starts from".

    Raises:
        Diverged: If its training diverged.
        RequestError: If it is not there for another reason.
    """
    if store.diverged(key):
        raise Diverged(f"{what} a model whose training diverged")
    if not store.has_model(key):
        raise RequestError(f"{what} a model that could not be trained")


@settings_kept()
def train(
    job: TrainedJob,
    store: Store,
    device: str,
    precision: str,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Train a job's model and keep it, continuing from the latest checkpoint if there is a whole one.

    Args:
        job: What to train.
        store: Where the model, its history and its checkpoint live.
        device: Device type.
        precision: ``float32`` or ``bfloat16``.
        report: Called after every epoch with the number done and to do.

    Raises:
        Diverged: If the loss is no longer finite.
        Breach: If what the balancer made is no training set, or a setting of the process was changed.
    """
    started = time.perf_counter()
    run = _Run.start(job, store, device, precision)
    try:
        history, best, seconds = _resumed(run, store.checkpoint(job.key))
    except Exception as error:
        # Whatever a damaged checkpoint leads to: nothing of it may stay in the run.
        warn(f"{store.model_dir(job.key) / CHECKPOINT} is damaged: {_reason(error)}; its training starts anew")
        run = _Run.start(job, store, device, precision)
        history, best, seconds = _resumed(run, None)
    for epoch in range(len(history), run.epochs):
        if early_end(history, run.defenses, job.recipe):
            break
        report(epoch, run.epochs)
        trained = run.train_epoch(epoch)
        with run.as_kept():
            history.append(run.judge(epoch, *trained))
            if not history[-1].finite:
                store.write_diverged(job.key, as_csv(history))
                store.write_checkpoint(job.key, None)
                losses = f"training {history[-1].train_loss}, validation {history[-1].validation_loss}"
                raise Diverged(f"its training diverged: loss in epoch {epoch + 1} of {run.epochs}: {losses}")
            for keep in run.chosen_by:
                if keep not in best or score(history[-1], keep) > best[keep][0]:
                    best[keep] = (score(history[-1], keep), run.snapshot())
        state = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "history": [vars(line) for line in history],
            "best": best.get("best"),
            "robust": best.get("robust"),
            "defenses": run.states,
            "seconds": seconds + time.perf_counter() - started,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        store.write_checkpoint(job.key, buffer.getvalue())
    report(run.epochs, run.epochs)
    end = early_end(history, run.defenses, job.recipe)
    keep = end.keep if end else job.recipe.keep
    chosen = best[keep][1] if keep in best else run.handed_over()
    if chosen is not None:
        run.model.load_state_dict(chosen)
        run.finish()
    line = kept(history, keep)
    if end:
        note = f"training ended after epoch {len(history)} of {run.epochs}: {end.reason}; kept: epoch {line.epoch}"
        run = replace(run, notes=(*run.notes, note))
    _keep(run, history, line, store, seconds + time.perf_counter() - started)
    store.write_checkpoint(job.key, None)


_Progress: TypeAlias = "tuple[list[Epoch], dict[Keep, tuple[float, dict[str, Tensor]]], float]"
"""The history, the score and the weights of the best epoch by each of ``_Run.chosen_by``, and the seconds it took."""


def _resumed(run: _Run, checkpoint: bytes | None) -> _Progress:
    """Put a run to where a checkpoint was written; without one, to the start."""
    if checkpoint is None:
        return [], {}, 0.0
    saved = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    for state, kept_before in zip(run.states, saved.get("defenses", ()), strict=False):
        state.update({name: value.to(run.device) for name, value in kept_before.items()})
    choices: tuple[Keep, ...] = ("best", "robust")
    best = {keep: saved[keep] for keep in choices if saved.get(keep) is not None}
    return [Epoch(**line) for line in saved["history"]], best, saved["seconds"]


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, Damaged) else explain(error)


def _keep(run: _Run, history: Sequence[Epoch], chosen: Epoch, store: Store, seconds: float) -> None:
    job = run.job
    weights = save({name: value.detach().cpu().contiguous() for name, value in run.model.state_dict().items()})
    backwards = sum(line.passes for line in history)
    info: dict[str, Any] = {
        "spec": job.spec.model_dump(mode="json"),
        "dataset": job.data.spec.model_dump(mode="json"),
        "seed": job.seed,
        "start": job.start,
        "precision": run.precision,
        "device": run.device,
        "notes": [*run.notes, *run.parts.notes],
        "training_images": len(run.train),
        "epochs": len(history),
        "steps": run.steps_per_epoch * len(history),
        "costs": {"forwards": backwards + sum(line.forward_only for line in history), "backwards": backwards},
        "last": vars(history[-1]),
        "kept": vars(chosen),
        "provenance": provenance(run.device),
        "timings": {"training_seconds": seconds},
    }
    store.write_model(job.key, info, weights, as_csv(history))


@dataclass(frozen=True)
class _Run:
    job: TrainedJob
    device: str
    precision: str
    model: Classifier
    optimizer: torch.optim.Optimizer
    train: Samples
    seen: Samples
    validation: Samples
    gallery: Tensor
    weights: Tensor | None
    steps_per_epoch: int
    epochs: int
    notes: tuple[str, ...]
    states: tuple[dict[str, Tensor], ...]
    parts: Accumulation

    @property
    def defenses(self) -> list[Defense]:
        return [choice.component for choice in self.job.defenses]

    @property
    def reference(self) -> float:
        dataset = self.job.data.choice.component
        return dataset.eps["linf"].reference if "linf" in dataset.eps else 0.0

    @classmethod
    def start(cls, job: TrainedJob, store: Store, device: str, precision: str) -> _Run:
        original, gallery = job.data.samples("train"), job.data.samples("gallery")
        model = build(job, gallery.labels, *pixel_statistics(original.images))
        if job.start is not None:
            require_trained(store, job.start, "it starts from")
            warm_start(model, load(store.weights(job.start)))
        elif job.pretrained:
            given = job.architecture.component.pretrained_weights()
            warm_start(model, {f"{BACKBONE}network.{name}": value for name, value in given.items()}, own=True)
        recipe = job.recipe
        samples, notes = resampled(job, original)
        if not recipe.unseen:
            test = job.data.samples("test")
            samples = joined(samples, test)
            notes = (*notes, f"no unseen data: trained on {len(test)} test images as well")
        weights = class_weights(job, samples)
        steps = len(list(job.objective.component.batches(samples.labels, recipe.batch_size, _generator(job, 0))))
        steps *= _repeats(job)
        model = model.to(device)
        return cls(
            job=job,
            device=device,
            precision=precision,
            model=model,
            optimizer=make_optimizer(model, job.recipe),
            train=samples,
            seen=original[torch.from_numpy(stratified(original.labels.numpy(), 1000, job.seed))],
            validation=job.data.samples("validation"),
            gallery=gallery.images,
            weights=None if weights is None else weights.to(device),
            steps_per_epoch=steps,
            epochs=recipe.epochs_for(steps),
            notes=(*job.notes, *notes),
            states=tuple({} for _ in job.defenses),
            parts=Accumulation.of(job.objective.component, [choice.component for choice in job.defenses]),
        )

    @property
    def chosen_by(self) -> set[Keep]:
        """What the best epoch is kept by, in case it becomes the model."""
        robust: set[Keep] = {"robust"} if self.watched is not None else set()
        return robust | ({"best"} if self.job.recipe.keep == "best" else set())

    @property
    def watched(self) -> Threat | None:
        return watched(self.defenses, self.job.recipe, self.reference)

    def train_epoch(self, epoch: int) -> tuple[float, float, TrainingPasses]:
        """The learning rate of the first step, the mean loss, and the images that went through the network."""
        objective, recipe = self.job.objective.component, self.job.recipe
        descend = compose(self.defenses, self.states)
        scheduler = make_scheduler(self.optimizer, recipe, self.steps_per_epoch, self.epochs, epoch)
        (rate,) = set(scheduler.get_last_lr())
        losses: list[Tensor] = []
        inside: list[Tensor] = []
        (network,) = (part for part in self.model.modules() if isinstance(part, NormalizedBackbone))
        with seeded(digest64("epoch", self.job.seed, epoch)), counted(network) as passes:
            self.model.train()
            batches = objective.batches(self.train.labels, recipe.batch_size, _generator(self.job, epoch))
            for step, index in enumerate(batches):
                first = self._batch(self.train[index], epoch, step, inside)
                for _ in range(_repeats(self.job)):
                    batch = replace(
                        first,
                        progress=(epoch + len(losses) / self.steps_per_epoch) / self.epochs,
                        ends_epoch=len(losses) + 1 == self.steps_per_epoch,
                        spent=passes.add,
                    )
                    value = self.parts.backward(self.model, batch, descend, passes)
                    self.optimizer.step()
                    scheduler.step()
                    for defense, state in zip(self.defenses, self.states, strict=True):
                        defense.after_step(replace(batch, state=state))
                    losses.append(value)
        check_inside(inside)
        return float(rate), float(torch.stack(losses).double().mean()), passes

    def _batch(self, samples: Samples, epoch: int, step: int, inside: list[Tensor]) -> Batch:
        rng = Streams.of(samples.ids.to(self.device), self.job.seed, "training", epoch, step)
        return Batch(
            images=augmented(self.job, to_float(samples.images, self.device), rng.fork("augment"), inside),
            labels=samples.labels.to(self.device),
            rng=rng,
            eps=self.reference,
            model=self.model,
            objective=self.job.objective.component,
            class_weights=self.weights,
            precision=self.precision,
        )

    def handed_over(self) -> dict[str, Tensor] | None:
        """The weights that a defense hands over, or None where the network's own are kept."""
        for defense, state in zip(self.defenses, self.states, strict=True):
            found = defense.final_weights(self.model, state)
            if found is not None:
                return {name: value.detach().clone() for name, value in found.items()}
        return None

    @contextmanager
    def as_kept(self) -> Iterator[None]:
        """The network at the weights that would be kept now."""
        handed = self.handed_over()
        if handed is None:
            yield
            return
        own = self.snapshot()
        self.model.load_state_dict(handed)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def finish(self) -> None:
        self.model.eval()
        self.job.objective.component.finish(self.model, self.gallery)

    def judge(self, epoch: int, rate: float, loss: float, passes: TrainingPasses) -> Epoch:
        self.finish()
        classes, objective = self.job.data.num_classes, self.job.objective.component
        accuracy, balanced = accuracies(self.model, self.validation, classes, self.device)
        robust = None
        if self.watched is not None:
            chosen = stratified(self.validation.labels.numpy(), WATCHED, self.job.seed)
            samples = self.validation[torch.from_numpy(chosen)]
            robust = robust_accuracy(self.model, samples, self.watched, self.job.seed, self.device)
        return Epoch(
            epoch=epoch + 1,
            lr=rate,
            passes=passes.backwards,
            train_loss=loss,
            train_accuracy=accuracies(self.model, self.seen, classes, self.device)[0],
            validation_loss=mean_loss(self.model, objective, self.validation, self.device),
            validation_accuracy=accuracy,
            validation_balanced_accuracy=balanced,
            validation_robust_accuracy=robust,
            forward_only=passes.forwards - passes.backwards,
        )


def _repeats(job: TrainedJob) -> int:
    """Optimizer steps on each batch."""
    return max(choice.component.steps_per_batch() for choice in job.defenses)


def _generator(job: TrainedJob, epoch: int) -> np.random.Generator:
    return np.random.default_rng([job.seed, epoch])
