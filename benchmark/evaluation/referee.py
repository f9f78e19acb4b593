"""The rules that components are held to where their images, scores and predictions reach the judge, and the checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robbench.core.contracts import REJECTED, Classifier
from robbench.core.errors import Breach as Breach
from robbench.core.global_rng import GlobalState
from robbench.core.process_state import ProcessState
from robbench.core.tensor_check import plain, shown
from robbench.core.threat_model import Norm, Threat, allowed_size

_PARTS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""What a module keeps of weights, statistics, modules and hooks."""


def change_norms(images: Tensor, changed: Tensor) -> dict[Norm, Tensor]:
    """Norms of the change per sample, float64, each of shape ``(N,)``."""
    change = (changed.double() - images.double()).flatten(1)
    return {
        "linf": change.abs().amax(dim=1),
        "l2": torch.linalg.vector_norm(change, dim=1),
        "l1": change.abs().sum(dim=1),
        "l0": (change != 0).sum(dim=1).double(),
    }


def check_images(images: Tensor, changed: object, threat: Threat) -> Tensor:
    """Check what one stage returned.

    Args:
        images: What the stage was given, shape ``(N, C, H, W)``.
        changed: What it returned.
        threat: What it was allowed.

    Returns:
        A copy of ``changed``, which whoever made it cannot write to.

    Raises:
        Breach: If shape, type, range or size of the change break a rule.
    """
    changed = plain(changed, "images are a plain tensor")
    if changed.shape != images.shape:
        raise Breach("images keep their shape", f"{tuple(images.shape)} became {tuple(changed.shape)}")
    if changed.dtype != images.dtype:
        raise Breach("images stay floats of the same type", f"{images.dtype} became {changed.dtype}")
    if changed.device != images.device:
        raise Breach("images stay on their device", f"{images.device} became {changed.device}")
    changed = changed.resolve_neg().clone()
    if not bool(torch.isfinite(changed).all()):
        raise Breach("images are finite", f"{int((~torch.isfinite(changed)).sum())} values are not")
    if bool((changed < 0).any()) or bool((changed > 1).any()):
        raise Breach(
            "images stay inside [0, 1]", f"values from {float(changed.min()):.6g} to {float(changed.max()):.6g}"
        )
    if threat.norm != "none" and threat.eps is not None:
        size = change_norms(images, changed)[threat.norm]
        allowed = allowed_size(threat.eps)
        if bool((size > allowed).any()):
            raise Breach(
                "the change stays within eps",
                f"{threat.norm} {float(size.max()):.8g} > {threat.eps:.8g} in {int((size > allowed).sum())} samples",
            )
    return changed


SCORES = "the model scores each class of each image"
PREDICTIONS = "the model predicts a class for each image"
EMBEDDINGS = "the model embeds each image"
AGREEMENT = "decide gives the scores of forward and the prediction of predict"


def check_scores(scores: object, count: int, num_classes: int) -> Tensor:
    """Check that a model gives a score to each class; whether scores are finite is for the audit to say.

    Args:
        scores: What it returned.
        count: Number of images N.
        num_classes: Number of classes K.

    Raises:
        Breach: If they are no plain floats of shape ``(N, K)``.
    """
    found = plain(scores, SCORES)
    if found.shape != (count, num_classes) or not found.is_floating_point():
        raise Breach(SCORES, f"got {shown(found)} for {count} images and {num_classes} classes")
    return found


def check_predictions(predicted: object, count: int, num_classes: int, rejects: bool = False) -> Tensor:
    """Check that a model predicts a class for each image.

    Args:
        predicted: What it returned.
        count: Number of images N.
        num_classes: Number of classes K.
        rejects: Whether it may reject images.

    Raises:
        Breach: If they are no plain int64 of shape ``(N,)`` from 0 to K - 1, or ``REJECTED`` where it may.
    """
    found = plain(predicted, PREDICTIONS)
    if found.shape != (count,) or found.dtype != torch.int64:
        raise Breach(PREDICTIONS, f"got {shown(found)} for {count} images")
    if bool(((found < (REJECTED if rejects else 0)) | (found >= num_classes)).any()):
        raise Breach(PREDICTIONS, f"got {int(found.min())} to {int(found.max())} of {num_classes} classes")
    return found


def check_embeddings(features: object, count: int) -> Tensor:
    """Check that a model embeds each image.

    Args:
        features: What it returned.
        count: Number of images N.

    Raises:
        Breach: If they are no plain finite floats of shape ``(N, D)``.
    """
    found = plain(features, EMBEDDINGS)
    if found.ndim != 2 or len(found) != count or not found.is_floating_point():
        raise Breach(EMBEDDINGS, f"got {shown(found)} for {count} images")
    if not bool(found.isfinite().all()):
        raise Breach(EMBEDDINGS, f"{int((~found.isfinite()).sum())} values are not finite")
    return found


def check_classes(model: Classifier, num_classes: int) -> None:
    """Check that a model has the classes of its data.

    Args:
        model: The model.
        num_classes: Number of classes K of the data.

    Raises:
        Breach: If it says that it has another number.
    """
    if model.num_classes != num_classes:
        raise Breach(
            "the model has the classes of its data", f"its num_classes is {model.num_classes}, not {num_classes}"
        )


def check_answers(model: Classifier, images: Tensor) -> None:
    """Check that a model answers in the right form, and that its ways of being asked agree.

    A model that answers the same images differently, as random ones may, is held to the form alone.

    Args:
        model: The model, in evaluation mode; two forward passes of each kind.
        images: Float in [0, 1], shape ``(N, C, H, W)``.

    Raises:
        Breach: If it does not.
    """
    count, classes = len(images), model.num_classes
    with torch.no_grad():
        scores, again = (check_scores(model(images), count, classes) for _ in range(2))
        predicted, anew = (check_predictions(model.predict(images), count, classes, model.rejects) for _ in range(2))
        decided: object = model.decide(images)
    if not isinstance(decided, tuple) or len(decided) != 2:
        raise Breach(AGREEMENT, f"got {type(decided).__name__}, not two tensors")
    both = check_scores(decided[0], count, classes), check_predictions(decided[1], count, classes, model.rejects)
    if not torch.allclose(scores, again, equal_nan=True) or not torch.equal(predicted, anew):
        return
    if not torch.allclose(both[0].to(scores.dtype), scores, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise Breach(AGREEMENT, f"scores differ by up to {float((both[0] - scores).abs().max()):.6g}")
    if not torch.equal(both[1], predicted):
        raise Breach(AGREEMENT, f"{int((both[1] != predicted).sum())} of {count} predictions differ")


@contextmanager
def fair_play(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[None]:
    """Watch over a call of an attack and put right what it left behind.

    Weights, batch-norm statistics, training mode, gradient state, inputs, labels, the global random state and the
    settings of the process must be as before. Whatever was changed is restored, so that a breach spoils no other cell;
    hooks that were left in the model are taken out.

    Args:
        model: The model that is attacked.
        images: The images given to the attack.
        labels: The labels given to the attack.

    Raises:
        Breach: If anything was not left as it was.
    """
    before, randomness, process = _ModelState.of(model), GlobalState.now(), ProcessState.now()
    inputs, targets, grad_mode = images.clone(), labels.clone(), torch.is_grad_enabled()
    try:
        yield
        before.demand(model)
        if torch.is_grad_enabled() != grad_mode:
            raise Breach("the gradient state stays", "gradients were switched on or off globally")
        if not torch.equal(images, inputs):
            raise Breach("inputs are not written to", "the images given to the attack were changed")
        if not torch.equal(labels, targets):
            raise Breach("labels are not written to", "the labels given to the attack were changed")
        if GlobalState.now() != randomness:
            raise Breach("the global random state stays", "it was drawn from or set")
        process.demand()
    finally:
        # The settings first, since they change how the rest is written; which is done even where one cannot be set.
        try:
            process.restore()
        finally:
            randomness.restore()
            with torch.no_grad():
                for written, kept in ((images, inputs), (labels, targets)):
                    written.detach_().resize_(kept.shape).copy_(kept)
                before.restore(model)


@dataclass(frozen=True)
class _ModelState:
    """What attacks must leave of a model as it was.

    Attributes:
        values: Its weights and statistics by name.
        parts: Its modules, each with what it keeps of weights, statistics, modules and hooks.
        modes: Whether each module is in training mode.
        wanted: Whether each weight requires a gradient.
        gradients: Their gradients.
    """

    values: Mapping[str, Tensor]
    parts: Sequence[tuple[nn.Module, Mapping[str, tuple[dict[str, Any], dict[str, Any]]]]]
    modes: Sequence[bool]
    wanted: Sequence[bool]
    gradients: Sequence[Tensor | None]

    @classmethod
    def of(cls, model: nn.Module) -> _ModelState:
        modules, weights = list(model.modules()), list(model.parameters())
        return cls(
            {name: value.clone() for name, value in model.state_dict().items()},
            [
                (
                    module,
                    {
                        name: (part, dict(part))
                        for name, part in vars(module).items()
                        if name in _PARTS and isinstance(part, dict)  # TorchScript's own parts cannot be exchanged
                    },
                )
                for module in modules
            ],
            [module.training for module in modules],
            [weight.requires_grad for weight in weights],
            [weight.grad for weight in weights],
        )

    def demand(self, model: nn.Module) -> None:
        now = model.state_dict()
        if now.keys() != self.values.keys():
            raise Breach("the model is not rebuilt", "its parts changed")
        for name, value in self.values.items():
            if value.dtype != now[name].dtype or not torch.equal(value, now[name]):
                raise Breach("weights and statistics stay", f'"{name}" was changed')
        if self.modes != [module.training for module in model.modules()]:
            raise Breach("the training mode stays", "it was switched and not switched back")
        if self.wanted != [weight.requires_grad for weight in model.parameters()]:
            raise Breach("the gradient state stays", "requires_grad of a weight was changed")
        for before, weight in zip(self.gradients, model.parameters(), strict=True):
            if weight.grad is not before:
                raise Breach("the gradient state stays", "a gradient was left in a weight")

    def restore(self, model: nn.Module) -> None:
        for module, kept in self.parts:
            for name, (part, content) in kept.items():
                part.clear()
                part.update(content)
                vars(module)[name] = part
        model.load_state_dict(self.values)
        for module, mode in zip(model.modules(), self.modes, strict=True):
            module.training = mode
        for weight, wanted, gradient in zip(model.parameters(), self.wanted, self.gradients, strict=True):
            weight.requires_grad_(wanted)
            weight.grad = gradient
