"""The subject of an evaluation: a model with the images that it is tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robbench.core.batches import StoredSamples, fitting, in_batches, loaded
from robbench.core.contracts import REJECTED, Classifier, Samples, to_float
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.core.rejection import accepting
from robbench.core.sample_rng import digest64
from robbench.data.splits import stratified
from robbench.evaluation.query_counter import put_under_test
from robbench.evaluation.referee import check_answers, check_classes, check_predictions, check_scores
from robbench.results.schema import ConditionKind, Ints, Outcome
from robbench.training.judging import JUDGING_BATCH

ANSWERED = 32
"""Images, clean and attacked, on which a model's ways of being asked must agree."""


class Judgment(NamedTuple):
    """What a model makes of ``N`` images, as it is scored.

    Attributes:
        predicted: Its predictions, int64, shape ``(N,)``; a wrong class where its scores make none. Of a rejected image
            the true class if somebody attacked it, else a wrong one.
        scored: The class of its largest score, likewise.
        non_finite: Whether a score is infinite or no number, bool, shape ``(N,)``.
        rejected: Whether it rejects the image, bool, shape ``(N,)``.
    """

    predicted: Tensor
    scored: Tensor
    non_finite: Tensor
    rejected: Tensor


def judged(model: Classifier, images: Tensor, labels: Tensor, attacked: bool = False) -> Judgment:
    """Ask a model about images; without finite scores it is never right.

    The arg max of scores that are no numbers is the first of them: images of that class would count as robust.

    Args:
        model: In evaluation mode.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        attacked: Whether an adversary made the images, whom it is right to reject.

    Raises:
        Breach: If its answers are no scores and predictions.
    """
    count, classes = len(images), model.num_classes
    model = accepting(model, labels)
    with torch.no_grad():
        if getattr(model.predict, "__func__", None) is Classifier.predict:  # which is ``decide``: one pass
            scores, predicted = model.decide(images)
        else:
            predicted, scores = model.predict(images), model(images)
    predicted = check_predictions(predicted, count, classes, model.rejects)
    scores = check_scores(scores, count, classes)
    lost, rejected, wrong = ~scores.isfinite().all(dim=1), predicted == REJECTED, (labels + 1) % classes
    predicted = torch.where(rejected, labels if attacked else wrong, predicted)
    predicted = torch.where(lost & (predicted == labels), wrong, predicted)
    return Judgment(predicted, torch.where(lost, predicted, scores.argmax(dim=1)), lost, rejected)


@dataclass(frozen=True)
class Subject:
    """A trained model with its test images.

    Attributes:
        model: In evaluation mode, its weights frozen.
        samples: The test images.
        clean: Its predictions on them, int64, shape ``(N,)``.
        num_classes: Number of classes K.
        class_names: Names of the classes.
        seed: Seed of all attacks.
        split_seed: Seed of stratified subsamples, the same for every model of a data set.
        device: Device type.
    """

    model: Classifier
    samples: StoredSamples
    clean: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    seed: int
    split_seed: int
    device: str = "cpu"

    @classmethod
    def of(cls, model: Classifier, samples: StoredSamples, clean: Tensor | None = None, **rest: Any) -> Subject:
        """A subject with its clean predictions.

        Args:
            model: The model.
            samples: The test images.
            clean: The predictions, where they are known and the model was checked.
            **rest: The other attributes.

        Raises:
            Breach: If the model does not predict one of the data's classes for each image, what it answers to other
                questions does not fit, or it changes a setting of the process.
        """
        check_classes(model, rest["num_classes"])
        put_under_test(model)
        if clean is not None:
            return cls(model, samples, clean, **rest)
        device = rest.get("device", "cpu")

        def predicted(index: Tensor, batch: Samples) -> Tensor:
            return judged(model, to_float(batch.images, device), batch.labels.to(device)).predicted.cpu()

        with settings_kept(), seeded(digest64("clean", rest["seed"])):
            found = [*in_batches(samples, fitting(JUDGING_BATCH, samples.image_shape, device), predicted)]
            if len(samples):
                some = loaded(samples[torch.arange(min(ANSWERED, len(samples)))])
                check_answers(model, to_float(some.images, device))
        return cls(model, samples, torch.cat(found) if found else samples.labels, **rest)

    @property
    def right(self) -> Tensor:
        """Which clean predictions are right, bool, shape ``(N,)``."""
        return self.clean == self.samples.labels

    def sampled(self, size: int | None) -> Subject:
        """The same on a stratified subsample."""
        if size is None or size >= len(self.samples):
            return self
        return self._at(torch.from_numpy(stratified(self.samples.labels.numpy(), size, self.split_seed)))

    def among(self, ids: Ints) -> Subject:
        """The same on some of the samples."""
        return self._at(torch.isin(self.samples.ids, torch.from_numpy(ids)).nonzero().flatten())

    def outcome(self, kind: ConditionKind) -> Outcome:
        """The outcome of a condition that is applied to no sample."""
        ids, labels, clean = (values.numpy() for values in (self.samples.ids, self.samples.labels, self.clean))
        return Outcome.of(self.num_classes, kind, ids=ids, labels=labels, clean=clean)

    def _at(self, index: Tensor) -> Subject:
        return replace(self, samples=self.samples[index], clean=self.clean[index])
