"""One cell: a condition applied to a model's test images, judged by the referee."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robbench.core.batches import fitting, in_batches, loaded
from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.core.sample_rng import digest64
from robbench.evaluation.artifacts import artifacts, needed
from robbench.evaluation.attack_run import ATTACK_BATCH, AttackRunner, KeptImages, MakeImages, Report
from robbench.evaluation.certification import certified
from robbench.evaluation.gradient_diagnostics import lost_between_levels, lost_gradients, traits
from robbench.evaluation.referee import check_answers
from robbench.evaluation.subject import ANSWERED, Subject, judged
from robbench.planning.conditions import Condition
from robbench.results.schema import Bools, Ints, Outcome


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


@dataclass(frozen=True)
class _Applied:
    """A condition's outcome, the samples that it was applied to, and those of their images that are needed."""

    outcome: Outcome
    index: Tensor
    kept: KeptImages
    traits: tuple[str, ...] = ()


def evaluate(
    subject: Subject,
    condition: Condition,
    report: Report = lambda done, of: None,
    peers: Sequence[Classifier] = (),
    survivors: Ints | None = None,
    attack: MakeImages | None = None,
) -> Result:
    """Apply a condition to a model and judge what comes of it.

    Natural perturbations and chains are applied to every sample, single attacks to those that the model gets right.

    Args:
        subject: Model and images.
        condition: What is done to the images.
        report: Called after every batch with the number of samples done and to do.
        peers: Other models, for attacks that work through them.
        survivors: Ids of the samples to draw from, where the condition asks for those that other attacks left.
        attack: Makes attacked images elsewhere; None to make them in this process.

    Raises:
        Breach: If an attack or the model breaks a rule of the referee.
    """
    # A model that draws from global random state draws the same in every run, whatever was evaluated before.
    with settings_kept(), seeded(digest64("evaluation", subject.seed, condition.label)), warnings.catch_warnings():
        runner = AttackRunner.of(_drawn(subject, condition, survivors), condition, peers, report, attack)
        return _evaluated(runner, condition)


def _evaluated(runner: AttackRunner, condition: Condition) -> Result:
    if condition.proof:
        return Result(certified(runner.judge, condition.proof, runner.report), {}, (), ())
    if condition.kind == "clean":
        applied = _clean(runner.judge, condition)
    elif condition.target == "all":
        applied = _every_target(runner)
    else:
        applied = _attacked(runner)
    extras = artifacts(runner.judge, condition, applied.outcome, applied.index, applied.kept)
    if condition.kind != "clean" and len(applied.index):
        check_answers(runner.judge.model, applied.kept.at(applied.index[:ANSWERED]).to(runner.judge.device))
    return Result(applied.outcome, extras, applied.traits, tuple(runner.notes))


def _drawn(subject: Subject, condition: Condition, survivors: Ints | None) -> Subject:
    """The subject on the samples that the condition is for."""
    if condition.survivors and survivors is not None:
        subject = subject.among(survivors)
    return subject.sampled(condition.sample)


def _clean(subject: Subject, condition: Condition) -> _Applied:
    """The clean images, with what can be seen on them of the model's scores and gradients."""
    model, samples = subject.model, subject.samples
    outcome, index = subject.outcome("clean"), torch.arange(len(samples))
    seen: list[tuple[str, ...]] = []

    def looked_at(part: Tensor, batch: Samples) -> dict[str, Tensor]:
        images, labels = to_float(batch.images, subject.device), batch.labels.to(subject.device)
        if not seen:
            seen.append(traits(model, images))
        answer, lost = judged(model, images, labels), lost_gradients(model, images, labels)
        return {
            "scored": answer.scored,
            "non_finite": answer.non_finite,
            "rejected": answer.rejected,
            "flat": lost["ce"] & lost["margin"],
            **{f"flat_{loss}": mark for loss, mark in lost.items()},
        }

    found = [*in_batches(samples, fitting(ATTACK_BATCH, samples.image_shape, subject.device), looked_at)]
    if found:
        arrays: dict[str, Any] = {
            name: torch.cat([arrays[name] for arrays in found]).cpu().numpy() for name in found[0]
        }
        if not arrays["flat"].all():
            arrays["flat_between"] = _lost_between_levels(subject) & ~arrays["flat"]
        outcome = replace(outcome, **arrays)
    keep = needed(subject, condition, index)
    return _Applied(outcome, index, KeptImages(keep, loaded(samples[keep]).images), *seen)


def _lost_between_levels(subject: Subject) -> Bools:
    """Where the gradient is lost beside the images; asked of a copy, so that a random model draws what it drew."""
    model, samples = copy.deepcopy(subject.model), subject.samples

    def lost_here(part: Tensor, batch: Samples) -> Tensor:
        images, labels = to_float(batch.images, subject.device), batch.labels.to(subject.device)
        return lost_between_levels(model, images, labels).cpu()

    with seeded(digest64("between levels", subject.seed)):
        found = [*in_batches(samples, fitting(ATTACK_BATCH, samples.image_shape, subject.device), lost_here)]
    lost: Bools = torch.cat(found).numpy()
    return lost


def _attacked(runner: AttackRunner) -> _Applied:
    """The samples that the condition is tried on, attacked once for each draw."""
    subject, targets = runner.judge, runner.targets()
    attempted = subject.right if runner.condition.kind == "attack" else torch.ones_like(subject.right)
    if targets is not None:
        attempted = attempted & (targets != subject.samples.labels)
    index = torch.nonzero(attempted).flatten()
    keep = needed(subject, runner.condition, index)
    first = runner.run(index, targets, 0, keep)
    others = [runner.run(index, targets, draw, keep[:0]) for draw in range(1, runner.condition.draws)]
    return _Applied(runner.outcome([first, *others]), index, first.kept)


def _every_target(runner: AttackRunner) -> _Applied:
    """Each other class in turn; a sample is fooled if any target fools it, and the smallest such change counts."""
    subject = runner.judge
    labels = subject.samples.labels
    predicted = torch.full((len(labels), subject.num_classes), -1)
    best, right = subject.outcome(runner.condition.kind), torch.nonzero(subject.right).flatten()
    keep = needed(subject, runner.condition, right)
    images = torch.zeros(len(keep), *subject.samples.image_shape)
    for target in range(subject.num_classes):
        index = right[labels[right] != target]
        run = runner.run(index, torch.full_like(labels, target), 0, keep)
        if len(index):
            predicted[index, target] = run.arrays["final"]
        best = _stronger(best, runner.outcome([run]))
        won = torch.from_numpy(best.targets[run.kept.index.numpy()] == target)
        images[torch.isin(keep, run.kept.index[won])] = run.kept.images[won]
    return _Applied(replace(best, every_target=predicted.numpy()), right, KeptImages(keep, images))


def _stronger(first: Outcome, second: Outcome) -> Outcome:
    """Per sample the attempt that fooled the model, the smaller one in L2 where both did; passes add up."""
    fooled_1, fooled_2 = first.final != first.labels, second.final != second.labels
    tried = second.attempted & ~first.attempted
    better = tried | (second.attempted & fooled_2 & (~fooled_1 | (second.l2 < first.l2)))
    # Scores that were fooled while the prediction was not are what the audit looks for.
    gap = second.attempted & ~fooled_2 & ~fooled_1 & (second.scored != second.labels)
    joined = first.together(second, better)
    return replace(joined, scored=np.where(gap, second.scored, joined.scored))
