"""What components of each kind do: the contracts that built-in components and plugins fulfil."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from robbench.core.best_points import BestPoints, raise_lead, unknown_lead
from robbench.core.component import Component
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

if TYPE_CHECKING:
    from robbench.data.dataset import Dataset

# --- models

Answer = Literal["labels", "scores", "gradients"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
"""What a model can answer, the most last."""


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
        """The prediction that is scored, int64, shape ``(N,)``."""
        return self.decide(images)[1]

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and predictions in one pass: what ``forward`` and ``predict`` return, which is checked."""
        scores = self(images)
        return scores, scores.argmax(dim=1)

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
        ids: Sample ids, int64, shape ``(N,)``: positions in the source; made-up samples have
            ids of their own above those.
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

    def counts(self, num_classes: int) -> Tensor:
        """Samples per class, int64, shape ``(K,)``."""
        return torch.bincount(self.labels, minlength=num_classes)


def joined(first: Samples, second: Samples) -> Samples:
    """Two sets of samples, one behind the other."""
    pairs = ((first.images, second.images), (first.labels, second.labels), (first.ids, second.ids))
    return Samples(*(torch.cat(pair) for pair in pairs))


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
            labels: int64, shape ``(N,)``.
            weights: Class weights, shape ``(K,)``, or None.
            anchor: Clean images that stay where they are while ``images`` are attacked; objectives that compare
                images with each other use them as frozen references.
        """

    def finish(self, model: Classifier, gallery: Tensor) -> None:
        """Complete a trained classifier with its reference images, uint8, shape ``(G, C, H, W)``."""


# --- defenses


@dataclass(frozen=True)
class Batch:
    """One step of training, as a defense sees it.

    Attributes:
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        rng: Streams of the samples, other ones in every epoch.
        loss: The loss that is to become small, as a function of images.
        attack_loss: The loss that an attacker would raise, as a function of the images under attack and of those that
            they were made from.
        eps: The data set's reference size of change in Linf.
    """

    images: Tensor
    labels: Tensor
    rng: Streams
    loss: Callable[[Tensor], Tensor]
    attack_loss: Callable[[Tensor, Tensor], Tensor]
    eps: float


@dataclass(frozen=True)
class Defense(Component):
    """A change of training, of inference, or of both. Override either method, or both."""

    gradients: ClassVar[str] = "exact"
    """How gradients pass what ``wrap`` adds: ``exact``, ``straight-through``, ``expectation`` or ``none``."""

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss of one step, a scalar to descend on."""
        return batch.loss(batch.images)

    def wrap(self, model: Classifier) -> Classifier:
        """The model with the defense in front of it, as it is used and attacked."""
        return model


# --- attacks

Loss: TypeAlias = Literal["ce", "dlr", "margin"]
"""A loss of the scores that an attack raises: cross-entropy; the difference of logits ratio, which is the margin over
the gap between the first and the third score; the margin, the best other score minus that of the label."""

Needs = Literal["gradients", "scores", "decisions", "nothing"]
"""What an attack asks of a model, the most first."""


@dataclass(frozen=True)
class Attack(Component):
    """A way to change images. ``perturb`` must keep to the contract that the referee checks."""

    targetable: ClassVar[bool] = False
    """Whether ``threat.targeted`` is understood."""
    bounded: ClassVar[bool] = True
    """Whether the attack takes an eps; otherwise it looks for a small change by itself."""
    white_box: ClassVar[bool] = False
    """Whether the attack uses gradients."""
    black_box: ClassVar[bool] = False
    """Whether the attack asks the model for scores or predictions and learns from them without gradients."""
    decision_based: ClassVar[bool] = False
    """Whether the attack learns from predictions alone."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    """The losses that the attack follows in any part. Attacks on gradients that name none count as on cross-entropy;
    others, such as a loss on features, have no name."""
    adversarial: ClassVar[bool] = False
    """For attacks without a norm: whether the change is chosen by what the model answers, so that it is no natural
    perturbation."""
    needs_peers: ClassVar[bool] = False
    """Whether the attack works through other models of the grid; ``bind`` hands them to it."""
    global_state: ClassVar[bool] = False
    """Whether the attack draws from global random state, which it then sets, saves and restores."""

    @abc.abstractmethod
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Changed images.

        Args:
            model: The model, in evaluation mode, its weights frozen.
            images: Float in [0, 1], shape ``(N, C, H, W)``; not to be written to.
            labels: int64, shape ``(N,)``: the true classes, or the targets where ``threat.targeted``.
            threat: What is allowed.
            rng: One stream of random numbers per sample.

        Returns:
            Images as a plain tensor of the same shape and dtype, inside [0, 1] and inside the ball of ``threat`` around
            ``images``.
        """

    def advance(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        rng: Streams,
        start: BestPoints | None = None,
    ) -> BestPoints:
        """Attack from where another attack ended, and say where this one did.

        An attack that only has ``perturb`` begins anew, and what it returns is looked at, for a forward pass.

        Args:
            model: As in ``perturb``, like the next four.
            images: The clean images, around which the ball lies.
            labels: True classes or targets.
            threat: What is allowed.
            rng: Streams of its own.
            start: Where to start, inside the ball; None to begin anew.
        """
        lead = unknown_lead(images, model.num_classes) if start is None else start.lead
        changed = self.perturb(model, images, labels, threat, rng)
        with torch.no_grad():
            scores, predicted = model.decide(changed)
        fooled = predicted == labels if threat.targeted else predicted != labels
        ahead = (scores - scores.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return BestPoints(changed, -ahead if threat.targeted else ahead, fooled, raise_lead(lead, scores, labels))

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in a row from one start: none without gradients, one where there is no number of steps."""
        steps = getattr(self, "steps", 1)
        return (steps if isinstance(steps, int) else 1) if self.white_box else 0

    @property
    def averaged_draws(self) -> int:
        """Draws of a random model that gradients are averaged over."""
        return 1

    @property
    def needs(self) -> Needs:
        """The most that the attack asks of the model."""
        if self.white_box:
            return "gradients"
        if self.black_box and not self.decision_based:
            return "scores"
        return "decisions" if self.black_box or self.needs_peers or self.passes(2)[0] else "nothing"

    def variants(self, which: str) -> Sequence[Attack]:
        """What ``@which`` stands for where the attack has no eps: several of its kind, or none if nothing is meant.

        Args:
            which: ``each`` or another word of the attack's own.
        """
        return ()

    def bind(self, peers: Sequence[Classifier]) -> Attack:
        """The attack that works through other models.

        Args:
            peers: In evaluation mode, their weights frozen.
        """
        return self

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Why this attack cannot be run so, or None."""
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes that one sample costs at the most."""
        return 0, 0

    def chain_passes(self, num_classes: int) -> tuple[int, int]:
        """Those that ``advance`` costs: a look at what ``perturb`` returned more."""
        forwards, backwards = self.passes(num_classes)
        return forwards + 1, backwards
