"""One cell: a condition applied to a model's test images, judged by the referee."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.sample_rng import Streams
from robbench.data.splits import stratified
from robbench.evaluation.artifacts import embeddings, examples
from robbench.evaluation.gradient_diagnostics import traits, zero_gradients
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import change_norms, check_images, fair_play
from robbench.planning.conditions import Condition, Stage
from robbench.results.schema import Ints, Outcome
from robbench.results.store import EMBEDDINGS, EXAMPLES
from robbench.training.trainer import JUDGING_BATCH, predictions

ATTACK_BATCH = 128
"""Images per call of an attack; a constant, halved only where memory runs out."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """A trained model with the images it is tested on.

    Attributes:
        model: In evaluation mode, its weights frozen.
        samples: The test images.
        clean: Its hard decisions on them, int64, shape ``(N,)``.
        num_classes: Number of classes K.
        class_names: Names of the classes.
        seed: Seed of all attacks.
        split_seed: Seed of stratified subsamples, the same for every model of a data set.
        device: Device type.
    """

    model: Classifier
    samples: Samples
    clean: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    seed: int
    split_seed: int
    device: str = "cpu"

    @classmethod
    def of(cls, model: Classifier, samples: Samples, **rest: Any) -> Subject:
        """A subject with its clean decisions."""
        clean = predictions(model, samples.images, rest.get("device", "cpu"))
        return cls(model, samples, clean, **rest)

    def sampled(self, size: int | None) -> Subject:
        """The same on a stratified subsample."""
        if size is None or size >= len(self.samples):
            return self
        return self._at(torch.from_numpy(stratified(self.samples.labels.numpy(), size, self.split_seed)))

    def among(self, ids: Ints) -> Subject:
        """The same on some of the samples."""
        return self._at(torch.isin(self.samples.ids, torch.from_numpy(ids)).nonzero().flatten())

    def _at(self, index: Tensor) -> Subject:
        return replace(self, samples=self.samples[index], clean=self.clean[index])


@dataclass(frozen=True)
class Trial:
    """What a condition made of some samples, all on the CPU.

    Attributes:
        images: The images it returned, shape ``(M, C, H, W)``.
        final: Hard decisions on them, int64, shape ``(M,)``.
        rounded: Hard decisions on them rounded to 8 bits.
        scored: Arg max of the differentiable scores on them.
        norms: Norms of the whole change, float64, shape ``(M, 4)``: Linf, L2, L1, L0.
        passes: Forward and backward passes, float64, shape ``(M, 2)``.
    """

    images: Tensor
    final: Tensor
    rounded: Tensor
    scored: Tensor
    norms: Tensor
    passes: Tensor


@dataclass(frozen=True)
class Result:
    """What a cell leaves behind.

    Attributes:
        outcome: Its arrays.
        extras: Contents of files that figures use, by name: some attacked images, embeddings.
        traits: Of the model.
        notes: For the record.
    """

    outcome: Outcome
    extras: Mapping[str, bytes]
    traits: tuple[str, ...]
    notes: tuple[str, ...]


def evaluate(
    subject: Subject,
    condition: Condition,
    report: Report = lambda done, of: None,
    peers: Sequence[Classifier] = (),
    survivors: Ints | None = None,
) -> Result:
    """Apply a condition to a model and judge what comes of it.

    Natural perturbations and chains are applied to every sample, single attacks to those that the model gets right.

    Args:
        subject: Model and images.
        condition: What is done to the images.
        report: Called after every batch with the number of samples done and to do.
        peers: Other models, for attacks that work through them.
        survivors: Ids of the samples to draw from, where the condition asks for those that other attacks left.

    Raises:
        Breach: If an attack breaks a rule of the referee.
    """
    if condition.survivors and survivors is not None:
        subject = subject.among(survivors)
    subject = subject.sampled(condition.sample)
    if condition.kind == "clean":
        return _clean(subject, condition)
    condition = condition.bound(peers)
    # The judge is another copy of the model than the one that attacks get their hands on; and a random defense draws
    # the same in every cell, whatever was evaluated before it.
    attacked = copy.deepcopy(subject.model)
    runner = _Runner(replace(subject, model=copy.deepcopy(subject.model)), attacked, condition, report)
    if condition.target == "all":
        return runner.every_target()
    labels, right = subject.samples.labels, subject.clean == subject.samples.labels
    targets = runner.targets()
    attempted = right.clone() if condition.kind == "attack" else torch.ones_like(right)
    if targets is not None:
        attempted &= targets != labels
    index = torch.nonzero(attempted).flatten()
    trials = [runner.run(index, targets, draw) for draw in range(condition.draws)]
    return runner.result(_outcome(subject, condition, index, trials, targets), index, trials[0].images)


def _clean(subject: Subject, condition: Condition) -> Result:
    """The unchanged images, with what can be seen on them of the model's scores and gradients."""
    model, samples = copy.deepcopy(subject.model), subject.samples
    scored, flat = [], []
    seen: tuple[str, ...] = ()
    for start in range(0, len(samples), ATTACK_BATCH):
        index = torch.arange(start, min(start + ATTACK_BATCH, len(samples)))
        images = to_float(samples.images[index], subject.device)
        labels = samples.labels[index].to(subject.device)
        if start == 0:
            seen = traits(model, images)
        with torch.no_grad():
            scored.append(model(images).argmax(dim=1).cpu())
        flat.append(zero_gradients(model, images, labels).cpu())
    outcome = _outcome(subject, condition)
    if scored:
        outcome = replace(outcome, scored=torch.cat(scored).numpy(), flat=torch.cat(flat).numpy())
    extras = {}
    if condition.embed:
        extras[EMBEDDINGS] = embeddings(
            model, samples, samples.images, condition.embed, subject.split_seed, subject.device
        )
    return Result(outcome, extras, seen, ())


@dataclass(frozen=True)
class _Runner:
    subject: Subject
    attacked: Classifier
    condition: Condition
    report: Report
    notes: list[str] = field(default_factory=list)

    def targets(self) -> Tensor | None:
        subject, rule = self.subject, self.condition.target
        labels, classes = subject.samples.labels, subject.num_classes
        if rule is None:
            return None
        if rule == "next":
            return (labels + 1) % classes
        if rule == "random":
            streams = Streams.of(subject.samples.ids, subject.seed, "target")
            return (labels + 1 + streams.integers("target", (), classes - 1)) % classes
        if rule == "least-likely":
            with torch.no_grad():
                parts = torch.split(subject.samples.images, JUDGING_BATCH)
                return torch.cat([subject.model(to_float(p, subject.device)).argmin(dim=1).cpu() for p in parts])
        return torch.full_like(labels, subject.class_names.index(rule))

    def every_target(self) -> Result:
        """Each other class in turn; a sample is fooled if any target fools it, and the smallest such change counts."""
        subject = self.subject
        labels = subject.samples.labels
        right = subject.clean == labels
        decisions = torch.full((len(labels), subject.num_classes), -1)
        best: Outcome | None = None
        trials: list[tuple[Tensor, Trial]] = []
        for target in range(subject.num_classes):
            index = torch.nonzero(right & (labels != target)).flatten()
            targets = torch.full_like(labels, target)
            trial = self.run(index, targets, 0)
            trials.append((index, trial))
            decisions[index, target] = trial.final
            outcome = _outcome(subject, self.condition, index, [trial], targets)
            best = outcome if best is None else _stronger(best, outcome)
        assert best is not None
        shown = torch.nonzero(right).flatten()
        picked = [(trials[int(best.targets[sample])], sample) for sample in shown]
        images = [trial.images[index == sample] for (index, trial), sample in picked]
        attacked = torch.cat(images) if images else torch.zeros(0, *subject.samples.images.shape[1:])
        return self.result(replace(best, every_target=decisions.numpy()), shown, attacked)

    def result(self, outcome: Outcome, index: Tensor, attacked: Tensor) -> Result:
        subject = self.subject
        given, at, device = subject.samples[index], index.numpy(), subject.device
        extras = {EXAMPLES: examples(subject.model, given, attacked, outcome.clean[at], outcome.final[at], device)}
        if self.condition.embed:
            size, seed = self.condition.embed, subject.split_seed
            extras[EMBEDDINGS] = embeddings(subject.model, given, attacked, size, seed, device)
        return Result(outcome, extras, (), tuple(self.notes))

    def run(self, index: Tensor, targets: Tensor | None, draw: int) -> Trial:
        trials = []
        done = 0
        for part, trial in self._batches(index, targets, draw):
            trials.append(trial)
            done += len(part)
            self.report(draw * len(index) + done, self.condition.draws * len(index))
        if not trials:
            shape = self.subject.samples.images.shape[1:]
            none = torch.zeros(0, dtype=torch.int64)
            nothing = torch.zeros(0, 4).double(), torch.zeros(0, 2).double()
            return Trial(torch.zeros(0, *shape), none, none, none, *nothing)
        return Trial(*(torch.cat([getattr(trial, name) for trial in trials]) for name in Trial.__dataclass_fields__))

    def _batches(self, index: Tensor, targets: Tensor | None, draw: int) -> Iterator[tuple[Tensor, Trial]]:
        size, start = ATTACK_BATCH, 0
        while start < len(index):
            part = index[start : start + size]
            try:
                trial = self._trial(part, targets, draw)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not _out_of_memory(error):
                    raise
                size = max(1, size // 2)
                self.notes.append(f"batch size halved to {size}: {type(error).__name__}")
                continue
            yield part, trial
            start += len(part)

    def _trial(self, index: Tensor, targets: Tensor | None, draw: int) -> Trial:
        subject = self.subject
        samples = subject.samples[index]
        images = to_float(samples.images, subject.device)
        self.attacked.redraw(2 * draw + 1)
        subject.model.redraw(2 * draw)
        oracle = Oracle(self.attacked, len(index))
        changed = images
        for position, stage in enumerate(self.condition.stages):
            labels = targets[index] if stage.threat.targeted and targets is not None else samples.labels
            streams = Streams.of(samples.ids.to(subject.device), subject.seed, stage.attack.name, position, draw)
            changed = self._stage(stage, oracle, changed, labels.to(subject.device), streams)
        norms = change_norms(images, changed)
        with torch.no_grad():
            final = subject.model.predict(changed)
            # A natural perturbation has nobody whose work rounding could undo.
            attacked = self.condition.kind != "natural"
            rounded = subject.model.predict((changed * 255).round() / 255) if attacked else final
            scored = subject.model(changed).argmax(dim=1) if attacked else final
        return Trial(
            images=changed.cpu(),
            final=final.cpu(),
            rounded=rounded.cpu(),
            scored=scored.cpu(),
            norms=torch.stack([norms["linf"], norms["l2"], norms["l1"], norms["l0"]], dim=1).cpu(),
            passes=oracle.spent.T,
        )

    def _stage(self, stage: Stage, oracle: Oracle, images: Tensor, labels: Tensor, streams: Streams) -> Tensor:
        attack = stage.attack.component
        given = images.clone()
        with fair_play(self.attacked, given, labels):
            changed = attack.perturb(oracle, given, labels, stage.threat, streams)
        return check_images(images, changed, stage.threat)


def _outcome(
    subject: Subject,
    condition: Condition,
    index: Tensor | None = None,
    trials: list[Trial] | None = None,
    targets: Tensor | None = None,
) -> Outcome:
    size = len(subject.samples)
    clean = subject.clean.numpy()
    final, rounded, scored = clean.copy(), clean.copy(), clean.copy()
    attempted = np.zeros(size, dtype=np.bool_)
    norms, passes = np.zeros((size, 4)), np.zeros((size, 2))
    reached = np.full(size, -1, dtype=np.int64)
    draws = np.zeros((size, 0), dtype=np.int64)
    if index is not None and trials:
        at = index.numpy()
        final[at], rounded[at], attempted[at] = trials[0].final.numpy(), trials[0].rounded.numpy(), True
        scored[at] = trials[0].scored.numpy()
        norms[at] = trials[0].norms.numpy()
        passes[at] = torch.stack([trial.passes for trial in trials]).sum(dim=0).numpy()
        if targets is not None:
            reached[at] = targets.numpy()[at]
        if condition.kind == "natural":
            draws = np.tile(clean[:, None], (1, len(trials)))
            draws[at] = np.stack([trial.final.numpy() for trial in trials], axis=1)
    return Outcome(
        ids=subject.samples.ids.numpy(),
        labels=subject.samples.labels.numpy(),
        clean=clean,
        final=final,
        rounded=rounded,
        attempted=attempted,
        targets=reached,
        draws=draws,
        every_target=np.zeros((size, 0), dtype=np.int64),
        linf=norms[:, 0],
        l2=norms[:, 1],
        l1=norms[:, 2],
        l0=norms[:, 3],
        forwards=passes[:, 0],
        backwards=passes[:, 1],
        scored=scored,
        flat=np.zeros(size, dtype=np.bool_),
        num_classes=subject.num_classes,
        kind=condition.kind,
    )


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch has no type of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _stronger(first: Outcome, second: Outcome) -> Outcome:
    """Per sample the attempt that fooled the model, the smaller one in L2 where both did; passes add up."""
    fooled_1, fooled_2 = first.final != first.labels, second.final != second.labels
    tried = second.attempted & ~first.attempted
    better = tried | (second.attempted & fooled_2 & (~fooled_1 | (second.l2 < first.l2)))
    names = ("final", "rounded", "scored", "targets", "linf", "l2", "l1", "l0")
    picked = {name: np.where(better, getattr(second, name), getattr(first, name)) for name in names}
    # Scores that were fooled while the decision was not are what the audit looks for.
    gap = second.attempted & ~fooled_2 & ~fooled_1 & (second.scored != second.labels)
    picked["scored"] = np.where(gap, second.scored, picked["scored"])
    return replace(
        first,
        **picked,
        attempted=first.attempted | second.attempted,
        forwards=first.forwards + second.forwards,
        backwards=first.backwards + second.backwards,
    )
