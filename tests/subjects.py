"""Models of closed form and the subjects made of them, for tests of the evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from closed_forms import SHAPE, Linear, numbers
from torch import Tensor

from robbench.core.attack import Attack
from robbench.core.contracts import Classifier, Samples, to_float
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.evaluator import Result
from robbench.evaluation.subject import Subject
from robbench.planning.component_spec import Choice
from robbench.planning.conditions import Condition, ConditionRequest, Stage
from robbench.results.schema import Outcome
from robbench.results.store import EXAMPLES

REGISTRY = Registry(installed=False)
CLASSES = ("ant", "bee", "cow", "dog")


class Exact(Linear):
    """Scores in float64 whatever the images are, so that no verdict hangs on rounding."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


class Constant(Exact):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 0 + torch.eye(self.num_classes, dtype=torch.float64)[1]


def exact(classes: int, seed: int = 3) -> Exact:
    weight = numbers(seed, classes, int(np.prod(SHAPE)))
    return Exact(weight, -weight.sum(dim=1) / 2).eval()


def samples(count: int, classes: int, seed: int = 1) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), generator=generator).to(torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Samples(images, labels, 1000 + 3 * torch.arange(count))


def subject(model: Classifier, given: Samples | None = None, wrong: int = 10, **rest: Any) -> Subject:
    """A subject whose model is right on all samples but some."""
    if given is None:
        given = samples(60, model.num_classes)
        with torch.no_grad():
            right = model.predict(to_float(given.images))
        labels = torch.where(torch.arange(len(given)) < wrong, (right + 1) % model.num_classes, right)
        given = replace(given, labels=labels)
    options = {"num_classes": model.num_classes, "class_names": CLASSES, "seed": 5, "split_seed": 0, **rest}
    return Subject.of(model, given, **options)


def condition(chain: str, **options: int) -> Condition:
    request = ConditionRequest.read({"chain": chain, **options}, "test")
    (only,) = request.resolve(REGISTRY, {}, CLASSES, "test")
    return only


def put_to(attack: Attack, norm: Norm = "linf", eps: float | None = 0.1, target: str | None = None) -> Condition:
    choice: Choice[Attack] = Choice("own", attack, None, "own")
    return Condition((Stage(choice, Threat(norm, eps, target is not None)),), target)


def arrays(outcome: Outcome) -> Mapping[str, Any]:
    return {field.name: getattr(outcome, field.name) for field in fields(outcome)}


def assert_same(first: Outcome, second: Outcome) -> None:
    for name, value in arrays(first).items():
        np.testing.assert_array_equal(value, arrays(second)[name], err_msg=name)


def examples(result: Result) -> dict[str, Any]:
    with np.load(io.BytesIO(result.extras[EXAMPLES])) as found:
        return dict(found)


@dataclass(frozen=True)
class Idle(Attack):
    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        return images.clone()


@dataclass(frozen=True)
class Towards(Attack):
    """The best that can be done in Linf for a target on a linear model."""

    targetable = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        weight: Any = model.model.weight  # type: ignore[union-attr]
        slopes = weight[labels] - weight[model.predict(images)]
        result: Tensor = (images + threat.radius * slopes.sign().reshape(images.shape).to(images.dtype)).clamp(0, 1)
        return result
