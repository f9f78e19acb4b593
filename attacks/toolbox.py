"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al., 2018), as ``art:<class name>``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from robbench.attacks._projections import add, project
from robbench.core.attack import Attack, Loss
from robbench.core.component import fit
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.global_rng import seeded
from robbench.core.sample_rng import Streams, digest64
from robbench.core.threat_model import Norm, Threat

# The norms that each attack bounds, or whose size it keeps small. Left out are attacks that make one change for all
# images or take one image at a time, that need more than a classifier and images, that want probabilities rather than
# scores, that do not run with NumPy 2, or that draw from a generator of their own that nothing outside can seed
# (``BoundaryAttack`` and ``HopSkipJump``, so that no result of theirs comes twice), and the toolbox's ``AutoAttack``,
# which is another ensemble than the one of that name.
_NORMS: Mapping[str, tuple[Norm, ...]] = {
    "AutoConjugateGradient": ("linf", "l2", "l1"),
    "AutoProjectedGradientDescent": ("linf", "l2", "l1"),
    "BasicIterativeMethod": ("linf",),
    "CarliniL0Method": ("l0",),
    "CarliniL2Method": ("l2",),
    "CarliniLInfMethod": ("linf",),
    "DeepFool": ("l2",),
    "ElasticNet": ("l1",),
    "FastGradientMethod": ("linf", "l2", "l1"),
    "MomentumIterativeMethod": ("linf", "l2", "l1"),
    "PixelAttack": ("l0",),
    "ProjectedGradientDescent": ("linf", "l2", "l1"),
    "ProjectedGradientDescentNumpy": ("linf", "l2", "l1"),
    "ProjectedGradientDescentPyTorch": ("linf", "l2", "l1"),
    "RescalingAutoConjugateGradient": ("linf", "l2", "l1"),
    "SquareAttack": ("linf", "l2"),
}
_ORDERS: Mapping[str, float] = {"linf": math.inf, "l2": 2, "l1": 1}
# Set from the threat model or from how attacks are run here, not by the user.
_MANAGED = ("estimator", "classifier", "norm", "eps", "targeted", "batch_size", "summary_writer", "verbose")

Option = bool | int | float | str


def toolbox_names() -> tuple[str, ...]:
    """The attacks that there are, each ``art:`` and a class of the toolbox."""
    return tuple(f"art:{name}" for name in _NORMS)


def toolbox_attack(name: str, options: Mapping[str, object], where: str) -> ToolboxAttack:
    """An attack of the toolbox.

    Args:
        name: Its class there, without ``art:``.
        options: Arguments of the class; a string is also tried as the number or truth value that it spells.
        where: What is being made and where it was asked for, for messages.

    Raises:
        RequestError: If the attack or an option is unknown, or a value does not fit.
    """
    try:
        defaults = _defaults(name)
        values = {key: _fit(value, defaults.get(key)) for key, value in options.items()}
        return ToolboxAttack(name, tuple(sorted(values.items())))
    except RequestError as error:
        raise RequestError(str(error), where) from None


@dataclass(frozen=True)
class ToolboxAttack(Attack):
    """An attack of the Adversarial Robustness Toolbox.

    It runs on the batch as a whole, in float32, on the differentiable scores, and draws from global random state, which
    is set from the streams of the batch and put back afterwards: its draws depend on the batch. Step sizes that are not
    given keep the toolbox's own ratio to eps. What rounding carries outside ball or box is brought back.

    Attributes:
        attack: Its class in the toolbox.
        options: Arguments of the class by name, those that differ from its defaults.
    """

    attack: str
    options: tuple[tuple[str, Option], ...] = ()

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms it works in, its usual one first."""
        return _NORMS[self.attack]

    @property
    def targetable(self) -> bool:  # type: ignore[override]
        """Whether the class has a targeted form."""
        return "targeted" in _arguments(self.attack)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """Whether the class takes an eps."""
        return "eps" in _arguments(self.attack)

    @property
    def white_box(self) -> bool:  # type: ignore[override]
        """Whether the class requires an estimator that gives gradients."""
        from art.estimators.classification.classifier import ClassGradientsMixin
        from art.estimators.estimator import LossGradientsMixin

        requirements = _toolbox_class(self.attack)._estimator_requirements
        return LossGradientsMixin in requirements or ClassGradientsMixin in requirements

    @property
    def losses(self) -> tuple[Loss, ...]:  # type: ignore[override]
        """Margins for the classes that minimize the change, else what ``loss_type`` says; cross-entropy by default."""
        if not self.white_box:
            return ()
        if not self.bounded:
            return ("margin",)
        return ("dlr",) if dict(self.options).get("loss_type") == "difference_logits_ratio" else ("ce",)

    @property
    def black_box(self) -> bool:  # type: ignore[override]
        """Whether the class requires no gradients."""
        return not self.white_box

    @property
    def gradient_steps(self) -> int:
        """The class's iterations; one where it has none."""
        steps = (_defaults(self.attack) | dict(self.options)).get("max_iter")
        return (steps if isinstance(steps, int) and steps > 0 else 1) if self.white_box else 0

    @property
    def global_state(self) -> bool:  # type: ignore[override]
        """Always: the toolbox knows no other randomness."""
        return True

    def __post_init__(self) -> None:
        """Check the fields, and that the class takes the options.

        Raises:
            RequestError: If the attack or an option is unknown, or the class refuses a value.
        """
        super().__post_init__()
        known = _defaults(self.attack)
        for name, _ in self.options:
            if name in _MANAGED:
                raise RequestError(f'option "{name}" of {self.attack} follows from the threat model; leave it out')
            if name not in known:
                raise RequestError(f'{self.attack} has no option "{name}"; {did_you_mean(name, known)}')
        norm = self.norms[0]
        try:
            self._build(_estimator(nn.Flatten(), (1, 1, 2), 2, "cpu"), Threat(norm, 0.1 if self.bounded else None), 1)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{self.attack} with {dict(self.options)}: {error}") from None

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """The images as the toolbox changes them.

        Raises:
            RequestError: If the device is one that the toolbox does not know.
            Exception: Whatever the toolbox raises.
        """
        if threat.eps == 0 or len(images) == 0:
            return images.clone()
        if images.device.type not in ("cpu", "cuda"):
            raise RequestError(f"the toolbox runs on cpu and cuda, not on {images.device.type}")
        with torch.enable_grad(), _frozen(model), seeded(digest64(*rng.keys.tolist())):
            scores = _ScoresModule(model, images.dtype)
            estimator = _estimator(scores, tuple(images.shape[1:]), model.num_classes, images.device.type)
            attack = self._build(estimator, threat, len(images))
            one_hot = functional.one_hot(labels, model.num_classes).float().cpu().numpy()
            found = attack.generate(images.detach().float().cpu().numpy(), y=one_hot)
        change = torch.as_tensor(found, device=images.device).to(images.dtype) - images.to(torch.float32).to(
            images.dtype
        )
        return add(images, change) if threat.eps is None else project(images, change, threat.norm, threat.eps)

    def refusal(self, threat: Threat, num_classes: int) -> str | None:
        """Norms, targets and limits that the class does not know."""
        if threat.norm not in self.norms:
            return f"{self.attack} works in {', '.join(self.norms)}, not in {threat.norm}"
        if threat.targeted and not self.targetable:
            return f"{self.attack} has no targeted form"
        if self.bounded and threat.eps is None:
            return f"{self.attack} needs an eps"
        if not self.bounded and threat.eps is not None:
            return f"{self.attack} looks for a small change by itself; give no eps"
        return None

    def passes(self, num_classes: int) -> tuple[int, int]:
        """An estimate, one pass per iteration: the toolbox does not say what it spends."""
        settings = _defaults(self.attack) | dict(self.options)
        counts = (settings.get(name) for name in ("max_iter", "binary_search_steps", "nb_restarts", "nb_random_init"))
        passes = math.prod(count for count in counts if isinstance(count, int) and count > 0)
        return passes, passes if self.white_box else 0

    def _build(self, estimator: Any, threat: Threat, batch_size: int) -> Any:
        defaults = _arguments(self.attack)
        settings: dict[str, Any] = {"batch_size": batch_size, "verbose": False, "targeted": threat.targeted}
        if threat.norm in _ORDERS:
            settings["norm"] = _ORDERS[threat.norm]
        if threat.eps is not None:
            settings["eps"] = threat.eps
            if "eps_step" in defaults:
                settings["eps_step"] = threat.eps * defaults["eps_step"] / defaults["eps"]
        settings = {name: value for name, value in settings.items() if name in defaults}
        return _toolbox_class(self.attack)(estimator, **(settings | dict(self.options)))


class _ScoresModule(nn.Module):
    """A model's scores in float32.

    The model is not a submodule, so that the toolbox can neither move it, nor switch its mode, nor clear its gradients.
    """

    def __init__(self, model: Classifier, dtype: torch.dtype) -> None:
        super().__init__()
        self.scores: Callable[[Tensor], Tensor] = lambda images: model(images.to(dtype)).float()

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(images)
        # The toolbox asks for a gradient even where the scores have none.
        return scores if scores.requires_grad else scores + 0 * images.flatten(1).sum(dim=1, keepdim=True)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight requires a gradient inside, so that the toolbox's backward passes leave none there."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _estimator(scores: nn.Module, image_shape: tuple[int, ...], num_classes: int, device: str) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=scores,
        loss=nn.CrossEntropyLoss(),
        input_shape=image_shape,
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device == "cuda" else "cpu",
    )


def _toolbox_class(name: str) -> Any:
    import art.attacks.evasion

    if name not in _NORMS:
        raise RequestError(f'the toolbox has no attack "{name}" that fits; {did_you_mean(name, _NORMS)}')
    found = getattr(art.attacks.evasion, name, None)
    if found is None:
        raise RequestError(f'this version of the toolbox has no attack "{name}"; update it')
    return found


def _arguments(name: str) -> dict[str, Any]:
    """The arguments of a class with their defaults."""
    parameters = inspect.signature(_toolbox_class(name).__init__).parameters
    return {key: parameter.default for key, parameter in list(parameters.items())[2:]}


def _defaults(name: str) -> dict[str, Any]:
    """The arguments that a user may set: those that a number, a truth value or a word can be given for."""
    return {
        key: default
        for key, default in _arguments(name).items()
        if key not in _MANAGED and (default is None or isinstance(default, Option))
    }


def _fit(value: object, default: object) -> Any:
    return fit(TypeAdapter(Option if default is None else type(default)), value)
