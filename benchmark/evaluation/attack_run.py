"""Runs the attacks of a condition, batch by batch, under the eyes of the referee."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from robbench.core.contracts import Classifier, to_float
from robbench.core.sample_rng import Streams
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import change_norms, check_images, check_predictions, fair_play
from robbench.evaluation.subject import Subject
from robbench.planning.conditions import Condition, Stage
from robbench.results.schema import Outcome
from robbench.training.trainer import JUDGING_BATCH

ATTACK_BATCH = 128
"""Images per call of an attack; a constant, halved only where memory runs out."""

Report = Callable[[int, int], None]


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
class AttackRunner:
    """Runs a condition's attacks on a subject.

    Attributes:
        judge: The subject with the copy of the model that judges.
        attacked: The copy that attacks get their hands on.
        condition: The condition, bound to its peers.
        report: Called after every batch with the number of samples done and to do.
        notes: What happened on the way, appended to.
    """

    judge: Subject
    attacked: Classifier
    condition: Condition
    report: Report
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, subject: Subject, condition: Condition, peers: Sequence[Classifier], report: Report) -> AttackRunner:
        """A runner with copies of the subject's model, so that a random defense draws the same in every cell."""
        judge, attacked = copy.deepcopy(subject.model), copy.deepcopy(subject.model)
        return cls(replace(subject, model=judge), attacked, condition.bound(peers), report)

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
                return torch.cat([subject.model(to_float(p, subject.device)).argmin(dim=1).cpu() for p in parts])
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
        size, start = ATTACK_BATCH, 0
        while start < len(index):
            part = index[start : start + size]
            try:
                run = self._batch(part, targets, draw)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not _out_of_memory(error):
                    raise
                size = max(1, size // 2)
                self.notes.append(f"batch size halved to {size}: {type(error).__name__}")
                continue
            yield run
            start += len(part)

    def _batch(self, index: Tensor, targets: Tensor | None, draw: int) -> AttackRun:
        subject = self.judge
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
        arrays = {"attempted": torch.ones(len(index), dtype=torch.bool), **self._judged(images, changed)}
        arrays |= {"forwards": oracle.forwards, "backwards": oracle.backwards}
        if targets is not None:
            arrays["targets"] = targets[index]
        return AttackRun(index, changed.cpu(), {name: values.cpu() for name, values in arrays.items()})

    def _stage(self, stage: Stage, oracle: Oracle, images: Tensor, labels: Tensor, streams: Streams) -> Tensor:
        given = images.clone()
        with fair_play(self.attacked, given, labels):
            changed = stage.attack.component.perturb(oracle, given, labels, stage.threat, streams)
        return check_images(images, changed, stage.threat)

    def _judged(self, images: Tensor, changed: Tensor) -> dict[str, Tensor]:
        """Predictions on the changed images, and norms of the change."""
        model = self.judge.model
        with torch.no_grad():
            final = check_predictions(model.predict(changed), len(changed), model.num_classes)
            # Rounding can undo an attack; a natural perturbation has no adversary.
            attacked = self.condition.kind != "natural"
            rounded = model.predict((changed * 255).round() / 255) if attacked else final
            seen = {"scored": final}
            if attacked:
                scores = model(changed)
                seen = {"scored": scores.argmax(dim=1), "non_finite": non_finite(scores)}
        norms = {str(norm): sizes for norm, sizes in change_norms(images, changed).items()}
        return {"final": final, "rounded": rounded, "scored": final, **seen, **norms}


def non_finite(scores: Tensor) -> Tensor:
    """Which samples have a score that is infinite or no number, bool, shape ``(N,)``."""
    return ~scores.isfinite().all(dim=1)


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch has no type of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
