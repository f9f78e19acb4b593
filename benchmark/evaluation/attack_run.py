"""Runs the attacks of a condition, batch by batch, under the eyes of the referee."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from robbench.core.contracts import Classifier, to_float
from robbench.core.rejection import accepting
from robbench.core.sample_rng import Streams
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import change_norms, check_images, check_scores, fair_play
from robbench.evaluation.subject import Subject, judged
from robbench.planning.conditions import Condition
from robbench.results.schema import Outcome
from robbench.training.judging import JUDGING_BATCH

ATTACK_BATCH = 128
_MOST = 1024
_VALUES = ATTACK_BATCH * 3 * 32 * 32


def attack_batch(image_shape: Sequence[int]) -> int:
    """How many images are attacked at once: more of small ones, so that the last survivors do not run a few at a time.

    Args:
        image_shape: ``(C, H, W)``.
    """
    return min(max(ATTACK_BATCH, _VALUES // math.prod(image_shape)), _MOST)


"""Images per call of an attack; a constant, halved only where memory runs out."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class AttackInput:
    """A batch that is to be attacked.

    Attributes:
        images: Clean images, float in [0, 1], shape ``(N, C, H, W)``.
        labels: Their classes, int64, shape ``(N,)``.
        ids: Their sample ids, int64, shape ``(N,)``.
        targets: Target classes, int64, shape ``(N,)``, or None without a rule.
        draw: Number of the random draw.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    targets: Tensor | None
    draw: int


@dataclass(frozen=True)
class StageImages:
    """What one stage of a condition returned, not checked, and the passes spent per sample so far.

    Attributes:
        images: Shape ``(N, C, H, W)``.
        forwards, backwards: Passes, shape ``(N,)``.
        searched: Where a part that searches without gradients fooled the model after gradients had not, bool, shape
            ``(N,)``.
    """

    images: Tensor
    forwards: Tensor
    backwards: Tensor
    searched: Tensor


MakeImages = Callable[[AttackInput], Iterator[StageImages]]
"""Attacks a batch, one stage after the other; the next stage starts once the images of the last one were checked."""


@dataclass(frozen=True)
class AttackRun:
    """What a condition made of some samples, all on the CPU.

    Attributes:
        index: Positions of the samples among the subject's, shape ``(M,)``.
        images: The images it returned, shape ``(M, C, H, W)``.
        arrays: Those arrays of ``Outcome`` that were measured, by name, of ``M`` entries each.
    """

    index: Tensor
    images: Tensor
    arrays: Mapping[str, Tensor]


@dataclass(frozen=True)
class Attacker:
    """Runs a condition's attacks in this process.

    Attributes:
        model: The copy of the model that attacks get their hands on, in evaluation mode.
        condition: The condition, bound to its peers.
        seed: Seed of all attacks.
    """

    model: Classifier
    condition: Condition
    seed: int

    def __call__(self, given: AttackInput) -> Iterator[StageImages]:
        """Attack a batch, stage by stage, under the eyes of the referee."""
        self.model.redraw(2 * given.draw + 1)
        oracle = Oracle(accepting(self.model, given.labels), len(given.labels))
        changed = given.images
        for position, stage in enumerate(self.condition.stages):
            targeted = stage.threat.targeted and given.targets is not None
            labels = given.targets if targeted and given.targets is not None else given.labels
            streams = Streams.of(given.ids, self.seed, stage.attack.name, position, given.draw)
            inputs = changed.clone()
            with fair_play(self.model, inputs, labels), oracle.watching(inputs):
                changed = stage.attack.component.perturb(oracle, inputs, labels, stage.threat, streams)
            yield StageImages(changed, oracle.forwards, oracle.backwards, oracle.searched)
            changed = changed.detach()


def checked_stages(condition: Condition, images: Tensor, made: Iterator[StageImages]) -> Iterator[StageImages]:
    """The stages of a condition, each held to its own limits around what the stage before it returned.

    Args:
        condition: The condition.
        images: The clean images, shape ``(N, C, H, W)``.
        made: What its stages returned, in order.

    Raises:
        Breach: If a stage breaks a rule on images.
    """
    changed = images
    for stage, after in zip(condition.stages, made, strict=True):
        changed = check_images(changed, after.images, stage.threat)
        yield replace(after, images=changed)


@dataclass(frozen=True)
class AttackRunner:
    """Judges what a condition's attacks make of a subject's images.

    Attributes:
        judge: The subject with the copy of the model that judges.
        attack: Makes attacked images.
        condition: The condition.
        report: Called after every batch with the number of samples done and to do.
        notes: What happened on the way, appended to.
    """

    judge: Subject
    attack: MakeImages
    condition: Condition
    report: Report
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        subject: Subject,
        condition: Condition,
        peers: Sequence[Classifier],
        report: Report,
        attack: MakeImages | None = None,
    ) -> AttackRunner:
        """A runner with copies of the subject's model, so that a random defense draws the same in every cell.

        Args:
            subject: Model and images.
            condition: What is done to the images.
            peers: Other models, for attacks that work through them.
            report: Called after every batch.
            attack: Makes attacked images elsewhere; None to make them in this process.
        """
        judge = replace(subject, model=copy.deepcopy(subject.model))
        here = attack or Attacker(copy.deepcopy(subject.model), condition.bound(peers), subject.seed)
        return cls(judge, here, condition, report)

    def targets(self) -> Tensor | None:
        """The target class of each sample by the condition's rule, int64, shape ``(N,)``, or None without a rule."""
        subject, rule = self.judge, self.condition.target
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
                scores = [check_scores(subject.model(to_float(p, subject.device)), len(p), classes) for p in parts]
            return torch.cat([score.argmin(dim=1).cpu() for score in scores])
        return torch.full_like(labels, subject.class_names.index(rule))

    def run(self, index: Tensor, targets: Tensor | None, draw: int = 0) -> AttackRun:
        """Attack some samples.

        Args:
            index: Their positions.
            targets: The target class of each of the subject's samples, or None.
            draw: Number of the random draw.
        """
        parts: list[AttackRun] = []
        done = 0
        for part in self._batches(index, targets, draw):
            parts.append(part)
            done += len(part.index)
            self.report(draw * len(index) + done, self.condition.draws * len(index))
        if not parts:
            return AttackRun(index, torch.zeros(0, *self.judge.samples.images.shape[1:]), {})
        arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        return AttackRun(index, torch.cat([part.images for part in parts]), arrays)

    def outcome(self, runs: Sequence[AttackRun]) -> Outcome:
        """The outcome of runs on the same samples, one for each random draw; the first one is judged."""
        outcome, at = self.judge.outcome(self.condition.kind), runs[0].index.numpy()
        measured = {name: torch.stack([run.arrays[name] for run in runs]) for name in runs[0].arrays}
        arrays = {name: getattr(outcome, name).copy() for name in measured}
        for name, values in measured.items():
            added = outcome.arrays()[name].attempts == "sum"
            arrays[name][at] = (values.sum(dim=0) if added else values[0]).numpy()
        if self.condition.kind == "natural":
            arrays["draws"] = np.tile(outcome.clean[:, None], (1, len(runs)))
            if measured:
                arrays["draws"][at] = measured["final"].T.numpy()
        return replace(outcome, **arrays)

    def _batches(self, index: Tensor, targets: Tensor | None, draw: int) -> Iterator[AttackRun]:
        size, start = attack_batch(self.judge.samples.images.shape[1:]), 0
        while start < len(index):
            part = index[start : start + size]
            try:
                run = self._batch(part, targets, draw)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = max(1, size // 2)
                self.notes.append(f"batch size halved to {size}: {type(error).__name__}")
                continue
            yield run
            start += len(part)

    def _batch(self, index: Tensor, targets: Tensor | None, draw: int) -> AttackRun:
        subject, device = self.judge, self.judge.device
        samples = subject.samples[index]
        images = to_float(samples.images, device)
        aims = None if targets is None else targets[index].to(device)
        given = AttackInput(images, samples.labels.to(device), samples.ids.to(device), aims, draw)
        subject.model.redraw(2 * draw)
        *_, last = checked_stages(self.condition, images, self.attack(given))
        arrays = self._judged(given, last.images)
        arrays["attempted"] = torch.ones(len(index), dtype=torch.bool)
        arrays |= {"forwards": last.forwards, "backwards": last.backwards, "searched": last.searched}
        if targets is not None:
            arrays["targets"] = targets[index]
        return AttackRun(index, last.images.cpu(), {name: values.cpu() for name, values in arrays.items()})

    def _judged(self, given: AttackInput, changed: Tensor) -> dict[str, Tensor]:
        """Predictions on the changed images, and norms of the change."""
        attacked = self.condition.kind != "natural"
        found = judged(self.judge.model, changed, given.labels, attacked)
        seen = {"final": found.predicted, "non_finite": found.non_finite, "rejected": found.rejected}
        # Rounding can undo an attack; a natural perturbation has no adversary.
        if not attacked:
            seen |= {"rounded": found.predicted, "scored": found.predicted}
        else:
            rounded = judged(self.judge.model, (changed * 255).round() / 255, given.labels, attacked)
            seen |= {"rounded": rounded.predicted, "scored": found.scored}
        return seen | {str(norm): sizes for norm, sizes in change_norms(given.images, changed).items()}


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # On the CPU torch has no type of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
