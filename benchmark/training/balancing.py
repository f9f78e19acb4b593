"""What a job's balancer makes of the training set, checked where training takes it over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robbench.core.contracts import Samples
from robbench.core.errors import Breach
from robbench.core.sample_rng import Streams
from robbench.core.tensor_check import plain, shown
from robbench.planning.plan import TrainedJob

SAMPLES, WEIGHTS = "a resampled set is one", "class weights are numbers above zero"
AUGMENTED = "augmented images are images"


def resampled(job: TrainedJob, original: Samples) -> tuple[Samples, tuple[str, ...]]:
    """The training set that the job's balancer makes, and notes for the record.

    Raises:
        Breach: If it is none; see ``check_samples``.
    """
    made, notes = job.balancer.component.resample(original, job.data.choice.component, job.seed)
    return check_samples(made, original, job.data.num_classes), notes


def class_weights(job: TrainedJob, samples: Samples) -> Tensor | None:
    """Weights of the classes in the loss, float32, shape ``(K,)``, or None for none.

    Raises:
        Breach: If they are none; see ``check_class_weights``.
    """
    classes = job.data.num_classes
    weights = check_class_weights(job.balancer.component.class_weights(samples.counts(classes)), classes)
    return None if weights is None else weights.float()


def augmented(job: TrainedJob, images: Tensor, rng: Streams, inside: list[Tensor]) -> Tensor:
    """A training batch, transformed as the job's balancer does it.

    Args:
        job: The job.
        images: Float in [0, 1], shape ``(N, C, H, W)``.
        rng: One stream of random numbers per image.
        inside: Appended to: whether all values are numbers from 0 to 1, for ``check_inside``.

    Raises:
        Breach: If type, shape or device change.
    """
    made = plain(job.balancer.component.augment(images, job.data.choice.component, rng), AUGMENTED)
    if (made.shape, made.dtype, made.device) != (images.shape, images.dtype, images.device):
        raise Breach(AUGMENTED, f"{shown(images)} became {shown(made)} on {made.device}")
    inside.append(((made >= 0) & (made <= 1)).all())
    return made


def check_samples(made: object, given: Samples, num_classes: int) -> Samples:
    """Check a resampled training set.

    Args:
        made: What ``resample`` returned.
        given: What it was given.
        num_classes: Number of classes K.

    Raises:
        Breach: If images, labels and ids are not as many, of the type and shape that they had, the labels from 0 to
            K - 1 and the ids all different; or if there is none.
    """
    if not isinstance(made, Samples):
        raise Breach(SAMPLES, f"got {type(made).__name__}, not Samples")
    for name in ("images", "labels", "ids"):
        new, old = plain(getattr(made, name), SAMPLES), getattr(given, name)
        if new.dtype != old.dtype or new.shape[1:] != old.shape[1:] or new.ndim == 0:
            raise Breach(SAMPLES, f"{name} were {shown(old)} and are {shown(new)}")
        if not len(new) or len(new) != made.labels.numel():
            raise Breach(SAMPLES, f"there are {len(new)} {name} for {made.labels.numel()} labels")
    if bool(((made.labels < 0) | (made.labels >= num_classes)).any()):
        raise Breach(SAMPLES, f"labels go from {int(made.labels.min())} to {int(made.labels.max())} of {num_classes}")
    if len(made.ids.unique()) != len(made.ids):
        raise Breach(SAMPLES, "two samples share an id, and with it their random draws")
    return made


def check_class_weights(weights: object, num_classes: int) -> Tensor | None:
    """Check the weights of the classes in the loss.

    Args:
        weights: What ``class_weights`` returned.
        num_classes: Number of classes K.

    Raises:
        Breach: If they are neither None nor finite floats above zero of shape ``(K,)``.
    """
    if weights is None:
        return None
    found = plain(weights, WEIGHTS)
    if found.shape != (num_classes,) or not found.is_floating_point():
        raise Breach(WEIGHTS, f"got {shown(found)} for {num_classes} classes")
    if not bool((found.isfinite() & (found > 0)).all()):
        raise Breach(WEIGHTS, f"got {', '.join(f'{weight:.6g}' for weight in found.tolist())}")
    return found


def check_inside(batches: Sequence[Tensor]) -> None:
    """Check the values of augmented batches at once, so that no step waits for the device.

    Args:
        batches: Whether each is inside [0, 1].

    Raises:
        Breach: If one left [0, 1].
    """
    if not bool(torch.stack(list(batches)).all()):
        raise Breach(AUGMENTED, "values leave [0, 1] or are no numbers")
