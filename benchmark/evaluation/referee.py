"""The rules that every attack is held to, and the checks that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robbench.core.contracts import Classifier
from robbench.core.global_rng import GlobalState
from robbench.core.threat_model import Norm, Threat


class Breach(Exception):
    """A rule was broken; the cell fails.

    Args:
        rule: The rule, in a few words.
        detail: What was found.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


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
        ``changed``, detached.

    Raises:
        Breach: If shape, type, range or size of the change break a rule.
    """
    if not isinstance(changed, Tensor):
        raise Breach("images are a tensor", f"got {type(changed).__name__}")
    changed = changed.detach()
    if changed.shape != images.shape:
        raise Breach("images keep their shape", f"{tuple(images.shape)} became {tuple(changed.shape)}")
    if changed.dtype != images.dtype:
        raise Breach("images stay floats of the same type", f"{images.dtype} became {changed.dtype}")
    if changed.device != images.device:
        raise Breach("images stay on their device", f"{images.device} became {changed.device}")
    if not bool(torch.isfinite(changed).all()):
        raise Breach("images are finite", f"{int((~torch.isfinite(changed)).sum())} values are not")
    if bool((changed < 0).any()) or bool((changed > 1).any()):
        raise Breach(
            "images stay inside [0, 1]", f"values from {float(changed.min()):.6g} to {float(changed.max()):.6g}"
        )
    if threat.norm != "none" and threat.eps is not None:
        size = change_norms(images, changed)[threat.norm]
        allowed = threat.eps * (1 + 1e-5) + 1e-6
        if bool((size > allowed).any()):
            raise Breach(
                "the change stays within eps",
                f"{threat.norm} {float(size.max()):.8g} > {threat.eps:.8g} in {int((size > allowed).sum())} samples",
            )
    return changed


def check_predictions(predicted: Tensor, count: int, num_classes: int) -> Tensor:
    """Check that a model predicts a class for each image.

    Args:
        predicted: What it predicted.
        count: Number of images N.
        num_classes: Number of classes K.

    Raises:
        Breach: If they are no int64 of shape ``(N,)`` from 0 to K - 1.
    """
    rule = "the model predicts a class for each image"
    if predicted.shape != (count,) or predicted.dtype != torch.int64:
        raise Breach(rule, f"got {predicted.dtype} of shape {tuple(predicted.shape)} for {count} images")
    if bool(((predicted < 0) | (predicted >= num_classes)).any()):
        raise Breach(rule, f"got {int(predicted.min())} to {int(predicted.max())} of {num_classes} classes")
    return predicted


@contextmanager
def fair_play(model: Classifier, images: Tensor, labels: Tensor) -> Iterator[None]:
    """Watch over a call of an attack and put right what it left behind.

    Weights, batch-norm statistics, training mode, gradient state, inputs, labels and the global random state must be as
    before. Whatever was changed is restored, so that a breach spoils no other cell.

    Args:
        model: The model that is attacked.
        images: The images given to the attack.
        labels: The labels given to the attack.

    Raises:
        Breach: If anything was not left as it was.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [
        (module, dict(module._parameters), dict(module._buffers), dict(module._modules)) for module in model.modules()
    ]
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    inputs, targets = images.clone(), labels.clone()
    grad_mode, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    randomness = GlobalState.now()
    try:
        yield
        _report(model, state, modes, wanted, gradients, grad_mode)
        if not torch.equal(images, inputs):
            raise Breach("inputs are not written to", "the images given to the attack were changed")
        if not torch.equal(labels, targets):
            raise Breach("labels are not written to", "the labels given to the attack were changed")
        if GlobalState.now() != randomness:
            raise Breach("the global random state stays", "it was drawn from or set")
        if torch.get_default_dtype() != dtype:
            raise Breach("the default type stays", f"{dtype} became {torch.get_default_dtype()}")
    finally:
        with torch.no_grad():
            images.copy_(inputs)
            labels.copy_(targets)
            for module, parameters, buffers, children in parts:
                module._parameters, module._buffers, module._modules = parameters, buffers, children
            model.load_state_dict(state)
        for module, mode in zip(model.modules(), modes, strict=False):
            module.training = mode
        for parameter, flag, gradient in zip(model.parameters(), wanted, gradients, strict=False):
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        torch.set_grad_enabled(grad_mode)
        torch.set_default_dtype(dtype)
        randomness.restore()


def _report(
    model: Classifier,
    state: dict[str, Tensor],
    modes: list[bool],
    wanted: list[bool],
    gradients: list[Tensor | None],
    grad_mode: bool,
) -> None:
    now = model.state_dict()
    if now.keys() != state.keys():
        raise Breach("the model is not rebuilt", "its parts changed")
    for name, value in state.items():
        if not torch.equal(value, now[name]):
            raise Breach("weights and statistics stay", f'"{name}" was changed')
    if modes != [module.training for module in model.modules()]:
        raise Breach("the training mode stays", "it was switched and not switched back")
    if wanted != [parameter.requires_grad for parameter in model.parameters()]:
        raise Breach("the gradient state stays", "requires_grad of a weight was changed")
    for before, parameter in zip(gradients, model.parameters(), strict=True):
        if parameter.grad is not before:
            raise Breach("the gradient state stays", "a gradient was left in a weight")
    if torch.is_grad_enabled() != grad_mode:
        raise Breach("the gradient state stays", "gradients were switched on or off globally")
