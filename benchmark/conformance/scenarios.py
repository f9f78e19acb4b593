"""Small models, some of closed form, and what comes of putting an attack to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from robbench.conformance.rules import Broken, NotApplicable
from robbench.core.attack import Attack
from robbench.core.contracts import Backbone, Classifier
from robbench.core.errors import Breach
from robbench.core.global_rng import seeded
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import check_images, fair_play
from robbench.models.cross_entropy import LogitClassifier

SHAPE = (3, 8, 8)
COUNT = 8
CLASSES = (3, 10, 2)
"""Numbers of classes, the first that an attack does not refuse being used wherever one will do."""
SIZES: Mapping[Norm, tuple[float, ...]] = {
    "linf": (8 / 255, 0.3),
    "l2": (0.5, 2.0),
    "l1": (2.0, 10.0),
    "l0": (6.0, 24.0),
}


# --- models


class Linear(Classifier):
    """Scores ``W x + b``, whose best attacks are known in closed form.

    Args:
        weight: Shape ``(K, D)``.
        bias: Shape ``(K,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.num_classes = len(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores, shape ``(N, K)``."""
        # A matrix product may sum in another order in another batch; attacks that have converged turn on such rounding.
        return (images.flatten(1)[:, None] * self.weight).sum(dim=2) + self.bias

    def embed(self, images: Tensor) -> Tensor:
        """The pixels, shape ``(N, D)``."""
        return images.flatten(1)

    def slopes(self, labels: Tensor) -> Tensor:
        """Slopes of every score less that of the label, shape ``(N, K, D)``."""
        return self.weight[None] - self.weight[labels][:, None]


class Constant(Linear):
    """Scores ``b``, whatever the image is."""

    def forward(self, images: Tensor) -> Tensor:
        """Scores, shape ``(N, K)``, that do not depend on the images."""
        return self.bias.expand(len(images), -1)


class Features(Backbone):
    """Two convolutions with batch normalization between them."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.Flatten(),
        )
        self.out_features = 8 * (-(-height // 2)) * (-(-width // 2))

    def forward(self, images: Tensor) -> Tensor:
        """Features, shape ``(N, out_features)``."""
        features: Tensor = self.layers(images)
        return features


def network(classes: int) -> Classifier:
    """A small random network in float32, in evaluation mode, its weights frozen."""
    with seeded(0):
        return LogitClassifier(Features(SHAPE), classes).eval().requires_grad_(False)


def linear(classes: int) -> Linear:
    """A random linear model in float64 that sees gray as undecided; its slopes have an L2 norm of about 1."""
    generator = torch.Generator().manual_seed(classes)
    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64) / size**0.5
    return Linear(weight, -weight.sum(dim=1) / 2).eval()


def largest_gain(slopes: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """How much linear functions can rise within the ball, shape ``(N,)``; in Linf and L0 within [0, 1] as well.

    Args:
        slopes: One function per image, shape ``(N, D)``.
        images: Shape ``(N, D)``.
        norm: Norm of the ball.
        eps: Its radius.
    """
    if norm == "linf":
        return (slopes.abs() * _room(slopes, images).clamp(max=eps)).sum(dim=1)
    if norm == "l0":
        worth = (slopes.abs() * _room(slopes, images)).sort(dim=1, descending=True).values
        return worth[:, : int(eps)].sum(dim=1)
    dual: Tensor = torch.linalg.vector_norm(slopes, 2 if norm == "l2" else torch.inf, dim=1)
    return eps * dual


def smallest_change(slopes: Tensor, gaps: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """The least norm of a change along which linear functions rise by ``gaps``, shape ``(N,)``; in L0 within [0, 1]."""
    if norm == "l0":
        worth = (slopes.abs() * _room(slopes, images)).sort(dim=1, descending=True).values
        needed = (worth.cumsum(dim=1) < gaps[:, None]).sum(dim=1) + 1
        return needed.double().where(gaps > 0, 0)
    dual: Tensor = torch.linalg.vector_norm(slopes, {"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
    sizes: Tensor = (gaps / dual).where(gaps > 0, 0)
    return sizes


def _room(slopes: Tensor, images: Tensor) -> Tensor:
    return torch.where(slopes > 0, 1 - images, images)


# --- runs


@dataclass(frozen=True, eq=False)
class Scenario:
    """A model with images, labels and sample ids, and a copy of the model for attacks that work through others."""

    model: Classifier
    peer: Classifier
    images: Tensor
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, make: Callable[[int], Classifier], classes: int, dtype: torch.dtype) -> Scenario:
        """Random images, all but one with the label that the model gives them.

        Args:
            make: From a number of classes and a seed to a model.
            classes: Number of classes.
            dtype: Type of the images.
        """
        model, peer = make(classes), make(classes)
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(COUNT, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
        with torch.no_grad():
            labels = model.predict(images)
        labels[-1] = (labels[-1] + 1) % model.num_classes
        return cls(model, peer, images, labels, 1000 + torch.arange(COUNT))

    def take(self, index: Tensor) -> Scenario:
        """Some of the samples."""
        return replace(self, images=self.images[index], labels=self.labels[index], ids=self.ids[index])

    def given(self, threat: Threat) -> Tensor:
        """The labels as an attack gets them: targets where it is targeted."""
        return (self.labels + 1) % self.model.num_classes if threat.targeted else self.labels


@dataclass(frozen=True)
class Run:
    """What an attack returned, the rules of the referee that it broke, and the passes it spent."""

    scenario: Scenario
    threat: Threat
    returned: object
    breaches: tuple[Breach, ...]
    forwards: float
    backwards: float

    @property
    def images(self) -> Tensor:
        """What was returned, where it is such that more can be said about it.

        Raises:
            NotApplicable: If it is not finite, or of another shape or type.
        """
        try:
            return check_images(self.scenario.images, self.returned, Threat("none"))
        except Breach as breach:
            raise NotApplicable(f'not before "{breach.rule}" is kept to') from breach


def scaled(classes: int, scale: float) -> Scenario:
    """The random linear model in float32 with scores that are larger or smaller, and boundaries that are the same."""

    def make(classes: int) -> Linear:
        model = linear(classes)
        return Linear((scale * model.weight).float(), (scale * model.bias).float()).eval()

    return Scenario.of(make, classes, torch.float32)


def run(attack: Attack, scenario: Scenario, threat: Threat) -> Run:
    """Put an attack to a model under the eyes of the referee."""
    oracle = Oracle(scenario.model, len(scenario.images))
    images, labels = scenario.images.clone(), scenario.given(threat).clone()
    streams = Streams.of(scenario.ids, 0, "conformance")
    breaches: list[Breach] = []
    returned: object = None
    try:
        with fair_play(scenario.model, images, labels), oracle.watching(images):
            returned = attack.bind([scenario.peer]).perturb(oracle, images, labels, threat, streams)
    except Breach as breach:
        breaches.append(breach)
    try:
        check_images(scenario.images, returned, threat)
    except Breach as breach:
        breaches.append(breach)
    forwards, backwards = (float(spent.max()) if len(spent) else 0.0 for spent in oracle.spent)
    return Run(scenario, threat, returned, tuple(breaches), forwards, backwards)


@dataclass(frozen=True)
class Bench:
    """An attack with the scenarios it is put to; every run is made once.

    Attributes:
        attack: The attack.
        norms: The norms it is registered for.
    """

    attack: Attack
    norms: Sequence[Norm]
    linear: Mapping[int, Scenario] = field(
        default_factory=lambda: {classes: Scenario.of(linear, classes, torch.float64) for classes in CLASSES}
    )
    network: Mapping[int, Scenario] = field(
        default_factory=lambda: {classes: Scenario.of(network, classes, torch.float32) for classes in CLASSES}
    )
    runs: dict[tuple[Scenario, Threat], Run] = field(default_factory=dict)

    def run(self, scenario: Scenario, threat: Threat) -> Run:
        """What comes of it, from the first time it was done."""
        if (scenario, threat) not in self.runs:
            self.runs[scenario, threat] = run(self.attack, scenario, threat)
        return self.runs[scenario, threat]

    def done(self) -> list[Run]:
        """The runs that were made so far, or those of the usual threats.

        Raises:
            NotApplicable: If none came to its end.
        """
        if not self.runs:
            try:
                for threat in self.usual:
                    self.run(self.linear[self.classes], threat)
            except (Exception, SystemExit) as error:
                raise NotApplicable("the attack never ran to its end") from error
        return list(self.runs.values())

    def threats(self, classes: int, targeted: bool = False) -> Iterator[Threat]:
        """The threats that the attack does not refuse."""
        for norm in self.norms:
            sizes = SIZES[norm] if norm != "none" and self.attack.bounded else (None,)
            for threat in (Threat(norm, size, targeted) for size in sizes):
                if not self.attack.refusal(threat, classes):
                    yield threat

    def every(self, classes: int) -> Iterator[Threat]:
        """Those without a target, and those with one where the attack takes one."""
        yield from self.threats(classes)
        if self.attack.targetable:
            yield from self.threats(classes, targeted=True)

    @property
    def classes(self) -> int:
        """The number of classes to use where any will do."""
        for classes in CLASSES:
            if any(self.every(classes)):
                return classes
        raise Broken(f"with {', '.join(map(str, CLASSES))} classes every threat is refused")

    @property
    def usual(self) -> list[Threat]:
        """One threat per norm."""
        first: dict[Norm, Threat] = {}
        for threat in self.every(self.classes):
            first.setdefault(threat.norm, threat)
        return list(first.values())

    @property
    def bounded(self) -> list[Threat]:
        """The threats with a ball.

        Raises:
            NotApplicable: If there is none.
        """
        found = [threat for threat in self.every(self.classes) if threat.eps is not None]
        if not found:
            raise NotApplicable("the attack takes no eps")
        return found


def describe(threat: Threat) -> str:
    """A threat in a few words."""
    size = "" if threat.eps is None else f" {threat.eps:.3g}"
    return f"{threat.norm}{size}{' targeted' if threat.targeted else ''}"
