"""Runs the attacks of a condition, batch by batch, under the eyes of the referee."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from robbench.core.batches import fitting, in_batches
from robbench.core.contracts import Classifier, Samples, to_float
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
    """How many images are attacked at once, halved only where memory runs out.

    They are more where they are small, so that the last survivors do not run a few at a time.

    Args:
        image_shape: ``(C, H, W)``.
    """
    return min(max(ATTACK_BATCH, _VALUES // math.prod(image_shape)), _MOST)


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
class KeptImages:
    """Images of some samples, on the CPU.

    Attributes:
        index: Positions of the samples among the subject's, rising, shape ``(M,)``.
        images: Shape ``(M, C, H, W)``.
    """

    index: Tensor
    images: Tensor

    def at(self, index: Tensor) -> Tensor:
        """The images of those of the samples at some positions."""
        return self.images[torch.searchsorted(self.index, index)]


@dataclass(frozen=True)
class AttackRun:
    """What a condition made of some samples, all on the CPU.

    Attributes:
        index: Positions of the samples among the subject's, shape ``(M,)``.
        arrays: Those arrays of ``Outcome`` that were measured, by name, of ``M`` entries each.
        kept: The images it returned of those samples that were to be kept.
    """

    index: Tensor
    arrays: Mapping[str, Tensor]
    kept: KeptImages


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

            def least(index: Tensor, batch: Samples) -> Tensor:
                with torch.no_grad():
                    scores = subject.model(to_float(batch.images, subject.device))
                return check_scores(scores, len(batch), classes).argmin(dim=1).cpu()

            size = fitting(JUDGING_BATCH, subject.samples.image_shape, subject.device)
            return torch.cat([*in_batches(subject.samples, size, least, halved=self.notes.append)])
        return torch.full_like(labels, subject.class_names.index(rule))

    def run(self, index: Tensor, targets: Tensor | None, draw: int, keep: Tensor) -> AttackRun:
        """Attack some samples.

        Args:
            index: Their positions, rising.
            targets: The target class of each of the subject's samples, or None.
            draw: Number of the random draw.
            keep: Positions of those samples whose images are kept; others may be among them.
        """
        parts: list[AttackRun] = []
        done = 0
        samples = self.judge.samples

        def attacked(part: Tensor, batch: Samples) -> AttackRun:
            return self._batch(part, batch, targets, draw, keep)

        size = fitting(attack_batch(samples.image_shape), samples.image_shape, self.judge.device)
        for part in in_batches(samples, size, attacked, index, self.notes.append):
            parts.append(part)
            done += len(part.index)
            self.report(draw * len(index) + done, self.condition.draws * len(index))
        if not parts:
            return AttackRun(index, {}, KeptImages(index, torch.zeros(0, *samples.image_shape)))
        arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        kept = [part.kept for part in parts]
        return AttackRun(
            index,
            arrays,
            KeptImages(torch.cat([part.index for part in kept]), torch.cat([part.images for part in kept])),
        )

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

    def _batch(self, index: Tensor, samples: Samples, targets: Tensor | None, draw: int, keep: Tensor) -> AttackRun:
        subject, device = self.judge, self.judge.device
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
        kept = torch.isin(index, keep)
        after = KeptImages(index[kept], last.images[kept.to(last.images.device)].cpu())
        return AttackRun(index, {name: values.cpu() for name, values in arrays.items()}, after)

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
