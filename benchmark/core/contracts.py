"""What components of each kind but attacks do: the contracts that built-in components and plugins fulfil."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from robbench.core.component import Component
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

if TYPE_CHECKING:
    from robbench.core.training_step import Batch
    from robbench.data.dataset import Dataset

# --- models

Answer = Literal["labels", "scores", "gradients"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
"""What a model can answer, the most last."""

REJECTED = -1
"""The prediction for an image that a model rejects."""


class Classifier(nn.Module, abc.ABC):
    """A model under test. Images are float in [0, 1], shape ``(N, C, H, W)``; normalization lives inside."""

    num_classes: int

    surrogates: tuple[str, ...] = ()
    """Names of other scores than those of ``forward`` of the same prediction; attacks that adapt to the model
    try them as well."""

    draws: int = 1
    """Passes through the network that one call makes: more than one where a random defense is averaged."""

    votes: int = 0
    """Further passes that a prediction makes: those of a random defense that lets fresh draws vote."""

    rejects: bool = False
    """Whether it may predict ``REJECTED`` in place of a class; ``weighed`` then says how far an image is from that."""

    @property
    def answers(self) -> Answer:
        """The most that attacks may ask of it: of what stands in front of classifiers, no more than of any of them.

        Models that others trained may give less than gradients, and set it.
        """
        behind = [part.answers for part in self.modules() if isinstance(part, Classifier) and part is not self]
        own: Answer = vars(self).get("answers", min(behind, key=ANSWERS.index, default="gradients"))
        return own

    @answers.setter
    def answers(self, most: Answer) -> None:
        vars(self)["answers"] = most

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Differentiable scores, shape ``(N, K)``: logits, or what attacks can use in their place."""

    @abc.abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The backbone's output, shape ``(N, D)``."""

    def predict(self, images: Tensor) -> Tensor:
        """The prediction that is scored, int64, shape ``(N,)``: a class, or ``REJECTED`` if it ``rejects``."""
        return self.decide(images)[1]

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and predictions in one pass: what ``forward`` and ``predict`` return, which is checked."""
        scores = self(images)
        return scores, scores.argmax(dim=1)

    def weighed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` returns, and by how much an image is accepted, of a model that may reject.

        Returns:
            Scores, shape ``(N, K)``; a differentiable number, negative where the image is rejected, shape ``(N,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} may reject images, and does not say when")

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set thresholds on validation images, before anything is asked.

        Args:
            batches: Clean images, float in [0, 1], shape ``(N, C, H, W)`` each.
        """

    def subset(self, index: Tensor) -> Classifier:
        """The same model for some samples of the batch at hand, which attacks that drop samples ask for.

        Passes are then charged to the samples that spend them, and a model that keeps something per sample can follow.

        Args:
            index: Mask or indices into the batch.
        """
        return self

    def redraw(self, stream: int) -> None:
        """Draw other random numbers from here on, independent of those of other streams."""
        for part in self.children():
            if isinstance(part, Classifier):
                part.redraw(stream)

    def fooled_by_search(self) -> None:
        """Hear that search without gradients fools the model on its samples, which gradients were followed on in vain.

        Attacks of several parts say so, of a ``subset``; who counts passes writes it down for the audit.
        """

    def surrogate(self, name: str) -> Classifier:
        """The same model with the same predictions, whose ``forward`` gives other scores.

        Args:
            name: One of ``surrogates``.

        Raises:
            KeyError: If there are none of that name.
        """
        raise KeyError(name)


# --- data


@dataclass(frozen=True)
class Samples:
    """Labeled images.

    Attributes:
        images: uint8, or float32 in [0, 1], shape ``(N, C, H, W)``.
        labels: Class indices, int64, shape ``(N,)``.
        ids: Sample ids, int64, shape ``(N,)``: positions in the source, those of made-up samples above them.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor) -> Samples:
        """Some of the samples, by a mask or indices."""
        return Samples(self.images[index], self.labels[index], self.ids[index])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.images.shape[1:])

    def counts(self, num_classes: int) -> Tensor:
        """Samples per class, int64, shape ``(K,)``."""
        return torch.bincount(self.labels, minlength=num_classes)


def joined(first: Samples, second: Samples) -> Samples:
    """Two sets of samples, one behind the other."""
    return Samples(*(torch.cat(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True)))


def to_float(images: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Stored images, uint8 or floats in [0, 1], as floats in [0, 1]."""
    moved = images.to(device)
    return moved.to(dtype) if moved.is_floating_point() else moved.to(dtype) / 255


def as_stored(images: Tensor, like: Tensor) -> Tensor:
    """Floats in [0, 1] in the form in which other images are stored: rounded to uint8, or as they are."""
    return (images * 255).round().to(torch.uint8) if like.dtype == torch.uint8 else images.to(like.dtype)


# --- balancers


@dataclass(frozen=True)
class Balancer(Component):
    """What is done about unequal class counts. Override any of the methods."""

    def refusal(self, counts: Tensor) -> str | None:
        """Why this cannot be done with these training images per class, or None."""
        return None

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """The training set to use in place of ``samples``, and notes for the record."""
        return samples, ()

    def class_weights(self, counts: Tensor) -> Tensor | None:
        """Weights of the classes in the loss, float, shape ``(K,)``, or None for none."""
        return None

    def augment(self, images: Tensor, dataset: Dataset, rng: Streams) -> Tensor:
        """A training batch, float in [0, 1], transformed anew in each epoch."""
        return images


# --- architectures and objectives


class Backbone(nn.Module, abc.ABC):
    """A network from normalized images to features.

    Attributes:
        out_features: The number of features per image.
    """

    out_features: int

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features, shape ``(N, out_features)``."""


@dataclass(frozen=True)
class Architecture(Component):
    """A family of backbones."""

    def refusal(self, image_shape: tuple[int, int, int]) -> str | None:
        """Why there is no backbone for images of shape ``(C, H, W)``, or None; asked before anything is trained."""
        return None

    @abc.abstractmethod
    def build(self, image_shape: tuple[int, int, int]) -> Backbone:
        """A backbone with random weights for images of shape ``(C, H, W)``; draws from torch's global generator."""

    def pretrained(self, image_shape: tuple[int, int, int]) -> tuple[str | None, str]:
        """What weights from ImageNet there are for images of this shape.

        Returns:
            A name that tells these weights from all others, or None where there are none or they cannot be had now;
            and why.
        """
        return None, f"{type(self).__name__} has no weights from ImageNet"

    def pretrained_weights(self) -> Mapping[str, Tensor]:
        """The weights that ``pretrained`` names, as a state of what ``build`` returns.

        Raises:
            LookupError: If there are none.
        """
        raise LookupError(f"{type(self).__name__} has no weights from ImageNet")


@dataclass(frozen=True)
class Objective(Component):
    """What a network is trained for, and how its output becomes a prediction."""

    @abc.abstractmethod
    def build(self, backbone: Backbone, num_classes: int, gallery_labels: Tensor) -> Classifier:
        """An untrained classifier around a backbone.

        Args:
            backbone: Network from images in [0, 1] to features (normalization included).
            num_classes: Number of classes K.
            gallery_labels: Labels of the reference images, int64, shape ``(G,)``; only nearest neighbors use them.
        """

    @abc.abstractmethod
    def batches(self, labels: Tensor, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """One epoch of index batches into the training set."""

    @abc.abstractmethod
    def loss(
        self, model: Classifier, images: Tensor, labels: Tensor, weights: Tensor | None, anchor: Tensor | None = None
    ) -> Tensor:
        """The training loss, a scalar.

        Args:
            model: A classifier that ``build`` made.
            images: Float in [0, 1], shape ``(N, C, H, W)``.
            labels: int64, shape ``(N,)``; of objectives with a ``score_loss`` also float, shape ``(N, K)``.
            weights: Class weights, shape ``(K,)``, or None.
            anchor: Clean images that stay where they are while ``images`` are attacked; objectives that compare
                images with each other use them as frozen references.
        """

    def score_loss(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The training loss as a function of scores, a scalar; objectives that train something else leave it out.

        Args:
            scores: Shape ``(N, K)``.
            labels: int64, shape ``(N,)``, or shares of the classes, float, shape ``(N, K)``.
            weights: Class weights, shape ``(K,)``, or None.

        Raises:
            NotImplementedError: If there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} trains no scores")

    @property
    def trains_scores(self) -> bool:
        """Whether there is a ``score_loss``: defenses may then use scores and mix labels."""
        return type(self).score_loss is not Objective.score_loss

    def finish(self, model: Classifier, gallery: Tensor) -> None:
        """Complete a trained classifier with its reference images, uint8, shape ``(G, C, H, W)``."""


# --- defenses


@dataclass(frozen=True)
class Defense(Component):
    """A change of training, of inference, or of both. Override whichever methods it needs.

    Training asks ``training_loss`` for every optimizer step and ``after_step`` after it; after every epoch
    ``final_weights``, which are judged on the validation images, and ``stop``.
    """

    gradients: ClassVar[str] = "exact"
    """How gradients pass what ``wrap`` adds: ``exact``, ``straight-through``, ``expectation`` or ``none``."""

    mixes_labels: ClassVar[bool] = False
    """Whether what comes after it gets labels of shape ``(N, K)``, which not every objective can be trained on."""

    by_sample: ClassVar[bool] = False
    """Whether its training loss is a (weighted) mean over samples that do not meet, and may be summed up in parts."""

    takes_mixed_labels: ClassVar[bool] = True
    """Whether its training loss takes labels of shape ``(N, K)``."""

    @property
    def uses_scores(self) -> bool:
        """Whether its training loss is one of scores rather than ``batch.loss``.

        Then no other defense's training loss may come after it, and the objective must be one of scores.
        """
        return False

    def network_refusal(self, model: Classifier, image_shape: tuple[int, int, int]) -> str | None:
        """Why it cannot train this network, or None; asked before anything is trained.

        Args:
            model: An untrained one, in evaluation mode.
            image_shape: ``(C, H, W)``.
        """
        return None

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss of one step, a scalar to descend on."""
        return batch.loss(batch.images)

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes per image and step, at most, beyond the one of each that training takes.

        Args:
            num_classes: K.
        """
        return 0, 0

    def steps_per_batch(self) -> int:
        """Optimizer steps on each batch, at least 1; each with the same images and streams."""
        return 1

    def after_step(self, batch: Batch) -> None:
        """Act after an optimizer step: on the network ``batch.model``, or on ``batch.state``."""

    def final_weights(self, model: Classifier, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The weights and buffers that are kept, a state of the model; None for the model's own.

        Args:
            model: The network in training.
            state: What the defense keeps from step to step.
        """
        return None

    def watched(self, eps: float) -> Threat | None:
        """Limits under which robust accuracy is measured after every epoch, for ``stop``; None for not at all.

        Args:
            eps: The data set's reference size in Linf.
        """
        return None

    def stop(self, robust_accuracies: Sequence[float]) -> str | None:
        """Why training stops here and keeps the epoch of the highest robust accuracy, or None to go on.

        Args:
            robust_accuracies: On validation images under PGD within ``watched``, one per epoch so far.
        """
        return None

    def wrap(self, model: Classifier) -> Classifier:
        """The model with the defense in front of it, as it is used and attacked."""
        return model

    @property
    def trains(self) -> bool:
        """Whether it changes training."""
        hooks = ("training_loss", "steps_per_batch", "after_step", "final_weights", "stop")
        return any(getattr(type(self), hook) is not getattr(Defense, hook) for hook in hooks)
