"""Training a model of the grid: from its recipe to weights, resumable after any epoch."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from robbench.core.contracts import Backbone, Batch, Classifier, Samples, joined, to_float
from robbench.core.errors import Damaged, RequestError, explain, warn
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.core.sample_rng import Streams, digest64
from robbench.data.splits import stratified
from robbench.planning.plan import TrainedJob
from robbench.results.provenance import provenance
from robbench.results.store import CHECKPOINT, Store
from robbench.training.balancing import augmented, check_inside, class_weights, resampled
from robbench.training.composition import compose
from robbench.training.history import Epoch, as_csv, kept
from robbench.training.optimizer import make_optimizer, make_scheduler

BACKBONE = "backbone."
JUDGING_BATCH = 256
"""Images per forward pass when predictions are collected; a constant, since sums in convolutions depend on it."""


class Diverged(Exception):
    """The training or the validation loss is no longer a finite number."""


class NormalizedBackbone(Backbone):
    """A backbone behind the normalization of its training data, so that the model takes images in [0, 1].

    Args:
        backbone: Network on normalized images.
        mean: Per channel, shape ``(C,)``.
        std: Per channel, shape ``(C,)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.out_features = backbone.out_features
        self.network = backbone
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("std", std.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1], shape ``(N, out_features)``."""
        features: Tensor = self.network((images - self.mean) / self.std)
        return features


def build(job: TrainedJob, gallery_labels: Tensor, mean: Tensor, std: Tensor) -> Classifier:
    """The job's model, untrained; its random weights depend on the job's seed alone.

    Args:
        job: The job.
        gallery_labels: Labels of the reference images, int64, shape ``(G,)``.
        mean: Mean of the training pixels per channel, shape ``(C,)``.
        std: Their standard deviation.
    """
    channels, height, width = job.data.decoded.images.shape[1:]
    with seeded(digest64("weights", job.seed)):
        backbone = job.architecture.component.build((channels, height, width))
        normalized = NormalizedBackbone(backbone, mean, std)
        model = job.objective.component.build(normalized, job.data.num_classes, gallery_labels)
    return model.to(memory_format=torch.channels_last)


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of stored images in [0, 1], shape ``(C,)`` each.

    The same everywhere: of uint8 from counts, of floats from sums of whole numbers.
    """
    if images.is_floating_point():
        channels = images.transpose(0, 1).flatten(1).double()
        mean = _mean(channels)
        return mean.float(), _mean((channels - mean[:, None]) ** 2).sqrt().clamp_min(1e-3).float()
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp_min(1e-3).float()


def _mean(values: Tensor) -> Tensor:
    """The mean of each row of float64 in [0, 1], to 32 bits behind the point, whatever the order of its sum."""
    return (values * 2**32).round().long().sum(dim=1).double() / 2**32 / values.shape[1]


def trained_model(job: TrainedJob, store: Store) -> Classifier:
    """The job's trained model, without its inference-time defenses."""
    labels = torch.from_numpy(job.data.splits.labels[job.data.splits.gallery])
    channels = job.data.decoded.images.shape[1]
    model = build(job, labels, torch.zeros(channels), torch.ones(channels))
    model.load_state_dict(load(store.weights(job.key)))
    return model


def predictions(model: Classifier, images: Tensor, device: str) -> Tensor:
    """Predictions on stored images, in fixed batches, int64 on the CPU, shape ``(N,)``."""
    with torch.no_grad():
        parts = [model.predict(to_float(part, device)).cpu() for part in torch.split(images, JUDGING_BATCH)]
    return torch.cat(parts)


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
        report(epoch, run.epochs)
        history.append(run.judge(epoch, *run.train_epoch(epoch)))
        if not history[-1].finite:
            store.write_diverged(job.key, as_csv(history))
            store.write_checkpoint(job.key, None)
            losses = f"training {history[-1].train_loss}, validation {history[-1].validation_loss}"
            raise Diverged(f"its training diverged: loss in epoch {epoch + 1} of {run.epochs}: {losses}")
        if job.recipe.keep == "best":
            score = history[-1].validation_balanced_accuracy
            if best is None or score > best[0]:
                best = (score, {name: value.detach().clone() for name, value in run.model.state_dict().items()})
        state = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "history": [vars(line) for line in history],
            "best": best,
            "seconds": seconds + time.perf_counter() - started,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        store.write_checkpoint(job.key, buffer.getvalue())
    report(run.epochs, run.epochs)
    if best is not None:
        run.model.load_state_dict(best[1])
        run.finish()
    _keep(run, history, store, seconds + time.perf_counter() - started)
    store.write_checkpoint(job.key, None)


_Progress: TypeAlias = "tuple[list[Epoch], tuple[float, dict[str, Tensor]] | None, float]"
"""The history, the best epoch's score and weights where they are kept, and the seconds that it took."""


def _resumed(run: _Run, checkpoint: bytes | None) -> _Progress:
    """Put a run to where a checkpoint was written; without one, to the start."""
    if checkpoint is None:
        return [], None, 0.0
    saved = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    return [Epoch(**line) for line in saved["history"]], saved["best"], saved["seconds"]


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, Damaged) else explain(error)


def _keep(run: _Run, history: Sequence[Epoch], store: Store, seconds: float) -> None:
    job = run.job
    weights = save({name: value.detach().cpu().contiguous() for name, value in run.model.state_dict().items()})
    steps = run.steps_per_epoch * run.epochs
    info: dict[str, Any] = {
        "spec": job.spec.model_dump(mode="json"),
        "dataset": job.data.spec.model_dump(mode="json"),
        "seed": job.seed,
        "start": job.start,
        "precision": run.precision,
        "device": run.device,
        "notes": list(run.notes),
        "training_images": len(run.train),
        "epochs": run.epochs,
        "steps": steps,
        "costs": {"forwards": sum(line.passes for line in history), "backwards": sum(line.passes for line in history)},
        "last": vars(history[-1]),
        "kept": vars(kept(history, job.recipe)),
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

    @classmethod
    def start(cls, job: TrainedJob, store: Store, device: str, precision: str) -> _Run:
        original, gallery = job.data.samples("train"), job.data.samples("gallery")
        model = build(job, gallery.labels, *pixel_statistics(original.images))
        if job.start is not None:
            require_trained(store, job.start, "it starts from")
            _warm_start(model, load(store.weights(job.start)), job)
        elif job.pretrained:
            given = job.architecture.component.pretrained_weights()
            _warm_start(model, {f"{BACKBONE}network.{name}": value for name, value in given.items()}, job, own=True)
        recipe = job.recipe
        samples, notes = resampled(job, original)
        if not recipe.unseen:
            test = job.data.samples("test")
            samples = joined(samples, test)
            notes = (*notes, f"no unseen data: trained on {len(test)} test images as well")
        weights = class_weights(job, samples)
        steps = len(list(job.objective.component.batches(samples.labels, recipe.batch_size, _generator(job, 0))))
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
        )

    def train_epoch(self, epoch: int) -> tuple[float, float, int]:
        """The learning rate of the first step, the mean loss, and the images that went forward and backward."""
        objective = self.job.objective.component
        dataset = self.job.data.choice.component
        descend = compose([choice.component for choice in self.job.defenses])
        eps = dataset.eps["linf"].reference if "linf" in dataset.eps else 0.0
        scheduler = make_scheduler(self.optimizer, self.job.recipe, self.steps_per_epoch, self.epochs, epoch)
        (rate,) = set(scheduler.get_last_lr())
        losses: list[Tensor] = []
        passes: list[int] = []
        inside: list[Tensor] = []
        with seeded(digest64("epoch", self.job.seed, epoch)):
            self.model.train()
            for step, index in enumerate(
                objective.batches(self.train.labels, self.job.recipe.batch_size, _generator(self.job, epoch))
            ):
                samples = self.train[index]
                rng = Streams.of(samples.ids.to(self.device), self.job.seed, "training", epoch, step)
                images = augmented(self.job, to_float(samples.images, self.device), rng.fork("augment"), inside)
                labels = samples.labels.to(self.device)

                def attack_loss(changed: Tensor, clean: Tensor, labels: Tensor = labels) -> Tensor:
                    passes.append(len(changed))
                    return self._loss(changed, labels, anchor=clean)

                def loss(changed: Tensor, labels: Tensor = labels) -> Tensor:
                    passes.append(len(changed))
                    return self._loss(changed, labels)

                self.optimizer.zero_grad(set_to_none=True)
                value = descend(Batch(images, labels, rng, loss, attack_loss, eps))
                value.backward()
                self.optimizer.step()
                scheduler.step()
                losses.append(value.detach())
        check_inside(inside)
        return float(rate), float(torch.stack(losses).double().mean()), sum(passes)

    def _loss(self, images: Tensor, labels: Tensor, anchor: Tensor | None = None) -> Tensor:
        objective = self.job.objective.component
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return objective.loss(self.model, images, labels, self.weights, anchor)

    def finish(self) -> None:
        self.model.eval()
        self.job.objective.component.finish(self.model, self.gallery)

    def judge(self, epoch: int, rate: float, loss: float, passes: int) -> Epoch:
        self.finish()
        right = predictions(self.model, self.seen.images, self.device) == self.seen.labels
        predicted = predictions(self.model, self.validation.images, self.device)
        correct = (predicted == self.validation.labels).double()
        per_class = [correct[self.validation.labels == c].mean() for c in range(self.job.data.num_classes)]
        return Epoch(
            epoch=epoch + 1,
            lr=rate,
            passes=passes,
            train_loss=loss,
            train_accuracy=float(right.double().mean()),
            validation_loss=self._validation_loss(),
            validation_accuracy=float(correct.mean()),
            validation_balanced_accuracy=float(torch.stack(per_class).mean()),
        )

    def _validation_loss(self) -> float:
        objective = self.job.objective.component
        total, count = 0.0, 0
        order = np.random.default_rng(0)
        with torch.no_grad():
            for index in objective.batches(self.validation.labels, JUDGING_BATCH, order):
                images = to_float(self.validation.images[index], self.device)
                value = objective.loss(self.model, images, self.validation.labels[index].to(self.device), None)
                total, count = total + float(value) * len(index), count + len(index)
        return total / count


def _generator(job: TrainedJob, epoch: int) -> np.random.Generator:
    return np.random.default_rng([job.seed, epoch])


def _warm_start(model: Classifier, weights: dict[str, Tensor], job: TrainedJob, own: bool = False) -> None:
    """Take over the backbone; the head belongs to the objective, and with ``own`` the normalization to the data."""
    wanted = {name for name in model.state_dict() if name.startswith(BACKBONE)}
    wanted -= {f"{BACKBONE}mean", f"{BACKBONE}std"} if own else set()
    given = {name: value for name, value in weights.items() if name in wanted}
    if given.keys() != wanted:
        raise ValueError("it cannot start from weights of another architecture")
    model.load_state_dict(given, strict=False)
