"""A network of others as a classifier of images in [0, 1], and what it is found to answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robbench.core.contracts import ANSWERS, Classifier
from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line
from robbench.models._external.normalization import Normalization
from robbench.models._external.request import Answers


class ExternalClassifier(Classifier):
    """A network of others behind its resizing and its normalization.

    Args:
        network: From normalized images, float, shape ``(N, C, H, W)``, to scores ``(N, K)`` or labels ``(N,)``.
        num_classes: Number of classes K.
        normalization: Applied to images in [0, 1].
        input_size: Height and width that images are resized to, or empty.
        answers: What it gives to whoever asks.
        batch: Images per call that the network demands, or 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        normalization: Normalization,
        input_size: tuple[int, ...] = (),
        answers: Answers = "gradients",
        batch: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.normalization, self.input_size, self.answers, self.batch = normalization, input_size, answers, batch
        for name, values in (("mean", normalization.mean), ("std", normalization.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores, shape ``(N, K)``: the network's own, or one for the label that it gives and zero for the others."""
        if self.answers == "gradients":
            return self.answer(images).to(images.dtype)
        with torch.no_grad():
            answer = self.answer(images.detach())
            if self.answers == "scores":
                return answer.to(images.dtype)
            if answer.ndim == 1:
                return F.one_hot(answer.long(), self.num_classes).to(images.dtype)
            # Scores that are no numbers make no label.
            lost = ~answer.isfinite().all(dim=1, keepdim=True)
            return F.one_hot(answer.argmax(dim=1), self.num_classes).to(images.dtype).masked_fill(lost, torch.nan)

    def embed(self, images: Tensor) -> Tensor:
        """Not known of networks of others.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("features of an external model are not known; only its scores or labels are")

    def answer(self, images: Tensor) -> Tensor:
        """What the network gives: scores, shape ``(N, K)``, or labels, integers of shape ``(N,)``."""
        if not len(images):
            # Attacks may ask about no image; networks of fixed batches, and functions, need not bear that.
            return self.answer(images.new_zeros(1, *images.shape[1:]))[:0]
        inputs = images
        if self.input_size and self.input_size != tuple(images.shape[2:]):
            inputs = F.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        inputs = (inputs - self.mean.to(inputs)) / self.std.to(inputs)
        dtype = next((weights.dtype for weights in self.network.parameters() if weights.is_floating_point()), None)
        inputs = inputs.to(dtype or inputs.dtype)
        if not self.batch:
            found = first_tensor(self.network(inputs), len(images))
        else:
            parts = [
                first_tensor(self.network(_filled(part, self.batch)), self.batch)[: len(part)]
                for part in inputs.split(self.batch)
            ]
            found = torch.cat(parts)
        return found.to(images.device)

    def normalized_by(self, normalization: Normalization) -> ExternalClassifier:
        """The same network behind another normalization."""
        other = ExternalClassifier(
            self.network, self.num_classes, normalization, self.input_size, self.answers, self.batch
        )
        return other.to(self.mean.device)


class Function(nn.Module):
    """A callable as a network; it may take and return NumPy arrays.

    Args:
        function: From images ``(N, C, H, W)`` to scores or labels, as tensors, arrays or lists.
        arrays: Whether it takes NumPy arrays.
    """

    def __init__(self, function: Callable[[Any], Any], arrays: bool = False) -> None:
        super().__init__()
        self.function, self.arrays = function, arrays

    def forward(self, images: Tensor) -> Any:
        """What the callable returns, arrays as tensors."""
        found = self.function(images.detach().cpu().numpy() if self.arrays else images)
        is_array = hasattr(found, "__array__") and not isinstance(found, Tensor)
        is_rows = isinstance(found, list) and not any(getattr(one, "ndim", 0) > 1 for one in found)
        return torch.as_tensor(np.asarray(found)) if is_array or is_rows else found


class Unswitched(nn.Module):
    """An exported program, which is in evaluation mode or not as it was exported, and cannot be switched."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> Unswitched:
        """Note the mode alone."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        """What the program returns."""
        return self.network(images)


def first_tensor(output: object, count: int) -> Tensor:
    """The scores or labels in what a network returned: it, its ``logits``, its first tensor, or its only one.

    Args:
        output: A tensor, a tuple or list, a mapping, or an object with ``logits``.
        count: Images that it is about.

    Raises:
        ValueError: If there is no such tensor, or not a row for each image.
    """
    found = getattr(output, "logits", None) if not isinstance(output, Tensor) else output
    if found is None and isinstance(output, Mapping):
        tensors = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        if "logits" not in tensors and len(tensors) != 1:
            raise ValueError(f'it returns a mapping of {", ".join(map(str, output)) or "nothing"} without "logits"')
        found = tensors.get("logits", next(iter(tensors.values())))
    if found is None and isinstance(output, tuple | list):
        found = next((value for value in output if isinstance(value, Tensor | np.ndarray)), None)
    if isinstance(found, np.ndarray):
        found = torch.as_tensor(found)
    if not isinstance(found, Tensor):
        raise ValueError(f"it returns {type(output).__name__}, in which there is no tensor of scores")
    if found.ndim > 2 and found[0].numel() == found.shape[1]:
        found = found.flatten(1)
    if found.ndim == 0 or len(found) != count:
        raise ValueError(f"it returns shape {tuple(found.shape)} for {count} images")
    return found


def _filled(images: Tensor, count: int) -> Tensor:
    missing = count - len(images)
    return images if not missing else torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])


# --- what it answers


@dataclass(frozen=True)
class Probed:
    """A classifier that was asked about a few images.

    Attributes:
        model: The classifier.
        gives: The most that it can answer; ``model.answers`` is what it may.
        notes: What a reader should know.
    """

    model: ExternalClassifier
    gives: Answers
    notes: tuple[str, ...]


def probed(
    networks: tuple[nn.Module, ...],
    images: Tensor,
    num_classes: int | None,
    normalization: Normalization,
    input_size: tuple[int, ...],
    answers: str,
    batch: int,
) -> Probed:
    """Ask a network about a few images, and make a classifier of it.

    Args:
        networks: The network; where it can be called in several ways, one for each, and the first that works is taken.
        images: In [0, 1], where the network lies, shape ``(N, C, H, W)``, one or more.
        num_classes: Number of classes K that it must know; None for as many as it has scores.
        normalization: What stands before it.
        input_size: Height and width that images are resized to, or empty.
        answers: The most that may be asked of it, or ``auto``.
        batch: Images per call that the network demands, or 0.

    Raises:
        RequestError: If it fails, or its answer is not what it should be.
    """
    failure: Exception | None = None
    for network, size in ((network, size) for size in dict.fromkeys((batch, batch or 1)) for network in networks):
        model = ExternalClassifier(network, num_classes or 0, normalization, input_size, batch=size)
        model.to(images.device)
        try:
            with torch.no_grad():
                answer = model.answer(images)
            break
        except Exception as error:
            failure = failure or error
    else:
        assert failure is not None
        counted = f"{images.shape[1]} channel{'s' if images.shape[1] > 1 else ''}"
        shape = "×".join(map(str, (images.shape[1], *(input_size or images.shape[2:]))))
        remedy = "where it takes images of another size, pass --input-size H,W (input_size)"
        if "channels" in str(failure):
            remedy = f"the images have {counted}; convert them, or let the factory's network begin with that"
        if isinstance(failure, ImportError):
            remedy = "import it where the file begins, not in a call"
        said = f"{type(failure).__name__}: {one_line(str(failure), 400)}"
        raise RequestError(f"it fails on {_counted(images)} of {shape}: {said}; {remedy}") from failure
    gives = _most(model, images, answer, num_classes)
    if answers != "auto" and ANSWERS.index(answers) > ANSWERS.index(gives):
        raise RequestError(f"it answers {gives}, not {answers}; leave answers out")
    model.answers = gives if answers == "auto" else answers  # type: ignore[assignment]
    notes = [
        *((f"takes {model.batch} images a call",) if model.batch else ()),
        *(
            {
                "scores": ("scores only: attacks without gradients",),
                "labels": ("labels only: attacks on predictions",),
            }.get(model.answers, ())
        ),
    ]
    return Probed(model, gives, tuple(notes))


def _most(model: ExternalClassifier, images: Tensor, answer: Tensor, num_classes: int | None) -> Answers:
    numbers = answer.is_floating_point()
    if answer.ndim == 1 and not numbers and not answer.is_complex():
        if num_classes is None:
            raise RequestError(
                "it answers labels alone, so say how many classes there are: num_classes=10, in the shell class_names "
                "beside images and labels in the npz file, or arrays[path=FILE.npz,num_classes=10]"
            )
        return "labels"
    if answer.ndim == 1 or (answer.ndim == 2 and answer.shape[1] == 1 and num_classes == 2):
        raise RequestError(
            "it returns one number for each image, which may be a logit or a probability; return a score for each "
            "class: torch.stack([-z / 2, z / 2], 1) of a logit z, torch.stack([1 - p, p], 1).clamp_min(1e-12).log() "
            "of a probability p"
        )
    if answer.ndim != 2:
        raise RequestError(
            f"it returns shape {tuple(answer.shape)} for {_counted(images)}; scores have shape "
            f"({len(images)}, {num_classes or 'K'}), labels ({len(images)},)"
        )
    if num_classes is None:
        num_classes = model.num_classes = answer.shape[1]
    if answer.shape[1] != num_classes:
        raise RequestError(
            f"it knows {answer.shape[1]} classes, the data set has {num_classes}; take the data set that it was "
            "trained for, or return the scores of these classes alone"
        )
    return "gradients" if numbers and _has_gradients(model, images) else "scores"


def _counted(images: Tensor) -> str:
    return "one image" if len(images) == 1 else f"{len(images)} images"


def _has_gradients(model: ExternalClassifier, images: Tensor) -> bool:
    inputs = images.clone().requires_grad_()
    with torch.enable_grad(), contextlib.suppress(Exception):
        scores = model.answer(inputs)
        if scores.requires_grad:
            return torch.autograd.grad(scores[:, 0].sum(), inputs, allow_unused=True)[0] is not None
    return False
