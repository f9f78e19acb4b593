"""An attack alone: on any model and any images, without a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robbench.core.attack import Attack
from robbench.core.batches import fitting, in_batches
from robbench.core.component import number
from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.global_rng import seeded
from robbench.core.process_state import settings_kept
from robbench.core.registry import Registry
from robbench.core.rejection import accepting
from robbench.core.sample_rng import Streams, digest64
from robbench.core.threat_model import NORMS, Norm, Threat, asked_threat
from robbench.evaluation.attack_run import attack_batch
from robbench.evaluation.referee import check_images
from robbench.models._external.loading import as_it_lies
from robbench.planning.component_spec import Choice, choose
from robbench.planning.conditions import attack_norms

Model: TypeAlias = nn.Module | Callable[[Any], Any]
"""What ``robbench.evaluate`` takes: a network, a ``Classifier``, or any function from images in [0, 1], tensors or
arrays, to scores, shape ``(N, K)``, or labels, shape ``(N,)``."""
A = TypeVar("A", Tensor, NDArray[np.generic])


def attack(name: str, **parameters: object) -> ReadyAttack:
    """An attack with its hyperparameters, to be called with a model and images.

    Args:
        name: A built-in attack (``robbench list attack``), one of an installed plugin, or ``art:`` and a class of the
            toolbox; hyperparameters may stand in brackets, as ``pgd[steps=20]``.
        **parameters: Hyperparameters.

    Raises:
        RequestError: If there is no such attack, or a hyperparameter does not fit.

    Example:
        >>> images = robbench.attack("pgd", steps=20)(model, x, y, eps=8 / 255)
        >>> (model(images).argmax(1) == y).float().mean()
    """
    registry = Registry()
    choice: Choice[Attack] = choose(registry, "attack", {**parameters, "name": name} if parameters else name, "")
    return ReadyAttack(choice, attack_norms(registry, choice))


@dataclass(frozen=True)
class ReadyAttack:
    """An attack that waits for a model and images.

    Attributes:
        choice: The attack.
        norms: Those that it works in, its usual one first.
    """

    choice: Choice[Attack]
    norms: tuple[Norm, ...]

    def __repr__(self) -> str:
        """The attack as grids ask for it."""
        return f"robbench.attack({self.choice.label!r})"

    def __call__(
        self,
        model: Model,
        images: A,
        labels: Tensor | NDArray[np.generic],
        eps: float | str | None = None,
        norm: str | None = None,
        targeted: bool = False,
        seed: int = 0,
        ids: Tensor | NDArray[np.generic] | None = None,
        num_classes: int | None = None,
    ) -> A:
        """Attack images.

        The model is attacked in evaluation mode; its training mode, ``requires_grad`` and gradients, the random state
        and the settings of the process are as before afterwards. What is returned is checked as in a run: within the
        ball, within [0, 1], finite.

        Args:
            model: On images in [0, 1], normalization inside; where it is a module, on the device of its weights.
            images: Float in [0, 1] or uint8, shape ``(N, C, H, W)``, a tensor or an array; not written to.
            labels: True classes, or targets where ``targeted``, integers, shape ``(N,)``.
            eps: Largest norm of the change, as ``8 / 255`` or ``"8/255"``; None for attacks that look for the smallest
                change, and for natural perturbations.
            norm: ``linf``, ``l2``, ``l1`` or ``l0``; where it is None, the attack's usual one.
            targeted: Whether ``labels`` are targets.
            seed: Of the random draws, which are the same in any batch.
            ids: The samples' own numbers, which draws depend on; 0 to N − 1 where they are None.
            num_classes: Number of classes K; needed where the model gives labels alone.

        Returns:
            Attacked images, float, of the same kind and on the same device as ``images``.

        Raises:
            RequestError: If images, labels, eps or norm do not suit the attack, or the model does not answer what it
                asks for.
            Breach: If the attack breaks a rule, as one of a plugin may.
        """
        threat = self._threat(eps, norm, targeted)
        given = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        classes = torch.as_tensor(labels)
        numbers = torch.arange(len(given)) if ids is None else torch.as_tensor(ids)
        _check(given, classes, numbers)
        device = _device(model, given)
        clean = to_float(given, device, given.dtype if given.is_floating_point() else torch.float32)
        samples = Samples(clean, classes.to(device, torch.int64), numbers.to(device))
        every = torch.arange(len(clean), device=device)
        size = fitting(attack_batch(samples.image_shape), samples.image_shape, device.type)
        with settings_kept(), seeded(digest64("attack", seed)), torch.enable_grad(), _at_rest(model):
            classifier = _classifier(model, clean, num_classes)
            self._suits(classifier, clean, classes, threat)
            streams = Streams.of(numbers.to(device), seed, self.choice.name, 0, 0)

            def attacked(index: Tensor, part: Samples) -> Tensor:
                batch = classifier.subset(index)
                batch = batch if targeted else accepting(batch, part.labels)
                made = self.choice.component.perturb(batch, part.images.clone(), part.labels, threat, streams[index])
                return check_images(part.images, made, threat)

            parts: list[Tensor] = list(in_batches(samples, size, attacked, every))
        changed = torch.cat(parts) if parts else clean.clone()
        back = changed.to(given.device)
        return back if isinstance(images, Tensor) else back.numpy()

    def _threat(self, eps: float | str | None, norm: str | None, targeted: bool) -> Threat:
        component, name = self.choice.component, self.choice.label
        chosen = next((one for one in self.norms if norm in (None, one)), None)
        if chosen is None:
            hint = did_you_mean(str(norm), self.norms if norm in NORMS else NORMS)
            raise RequestError(f'{name} works in {", ".join(self.norms)}, not in "{norm}"; {hint}', "norm")
        if component.needs_peers:
            raise RequestError(f"{name} works through other models of a grid; robbench run carries it out")
        if targeted and not component.targetable:
            raise RequestError(f"{name} takes no target", "targeted")
        free = chosen == "none" or not component.bounded
        if free and eps is not None:
            raise RequestError(f"{name} takes no eps", "eps")
        if not free and eps is None:
            raise RequestError(f"{name} needs an eps, as in eps=8/255", "eps")
        try:
            size = None if eps is None else number(eps) if isinstance(eps, str) else float(eps)
            return asked_threat(chosen, size, targeted)
        except (TypeError, ValueError) as error:
            raise RequestError(f'"{eps}" is no size: {error}', "eps") from None

    def _suits(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
            raise RequestError(
                f"classes {int(labels.min())} to {int(labels.max())}, but the model has {model.num_classes}", "labels"
            )
        refusal = self.choice.component.refusal(threat, model.num_classes)
        if refusal:
            raise RequestError(refusal, self.choice.label)
        needs, answers = self.choice.component.needs, model.answers
        if needs == "gradients" and (answers != needs or not _has_gradients(model, images)):
            raise RequestError(
                f"{self.choice.label} follows gradients, which do not pass this model; square asks for scores and "
                "hop-skip-jump for predictions alone",
                "model",
            )
        if needs == "scores" and answers == "labels":
            raise RequestError(
                f"{self.choice.label} asks for scores, the model gives labels alone; hop-skip-jump asks for no more",
                "model",
            )


def _has_gradients(model: Classifier, images: Tensor) -> bool:
    return not len(images) or model(images[:1].clone().requires_grad_()).requires_grad


def _classifier(model: Model, images: Tensor, num_classes: int | None) -> Classifier:
    """A model as attacks ask it.

    Raises:
        RequestError: If it gives neither scores nor labels.
    """
    tried = images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])
    try:
        return as_it_lies(model, tried, num_classes)
    except RequestError as error:
        raise RequestError(str(error), "model") from error.__cause__


@contextmanager
def _at_rest(model: Model) -> Iterator[None]:
    """A module in evaluation mode with its weights frozen, and afterwards as it was; functions are left alone."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in module.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in module.parameters()]
    try:
        with contextlib.suppress(NotImplementedError):  # an exported program is what it was exported as
            module.eval()
        module.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, wanted, gradient in weights:
            weight.requires_grad_(wanted)
            weight.grad = gradient


def _device(model: Model, images: Tensor) -> torch.device:
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next(weights, images).device


def _check(images: Tensor, labels: Tensor, ids: Tensor) -> None:
    if images.ndim != 4:
        raise RequestError(f"shape {tuple(images.shape)}, not (N, C, H, W)", "images")
    if images.dtype not in (torch.uint8, torch.float32, torch.float64):
        raise RequestError(f"{images.dtype}; give float32, float64 or uint8", "images")
    if images.is_floating_point() and images.numel():
        low, high = float(images.min()), float(images.max())
        if not 0 <= low <= high <= 1:
            raise RequestError(
                f"values from {low:.4g} to {high:.4g}, not in [0, 1]; normalization belongs into the model", "images"
            )
    for name, values in (("labels", labels), ("ids", ids)):
        if values.shape != (len(images),) or values.is_floating_point() or values.dtype == torch.bool:
            what = f"{values.dtype} of shape {tuple(values.shape)}"
            raise RequestError(f"{what} for {len(images)} images; give an integer for each", name)
