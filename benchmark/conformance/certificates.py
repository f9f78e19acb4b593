"""Rules for certificates: what they prove holds where the truth is known, and against what is tried elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robbench.conformance.components import breaches_told
from robbench.conformance.rules import NotApplicable, Rule, demand
from robbench.conformance.scenarios import COUNT, SHAPE, SIZES, Linear, network, smallest_change
from robbench.core.certificate import Certificate, Certified, NoCertificate
from robbench.core.contracts import Classifier
from robbench.core.global_rng import seeded
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.defenses.smoothing import Smoothed
from robbench.evaluation.referee import fair_play
from robbench.models._backbone import SequentialBackbone
from robbench.models._neighbors import NeighborClassifier
from robbench.models.cross_entropy import LogitClassifier

CLASSES = 3
ROOM = 0.25
"""How far every pixel is from 0 and from 1 at least."""
TRIED = 64
"""Changed images for each certified one."""


@dataclass(frozen=True)
class Claims:
    """A certificate with the norms that it says it is sound for.

    Attributes:
        method: The certificate.
        norms: Its norms.
    """

    method: Certificate
    norms: tuple[Norm, ...]

    @property
    def threats(self) -> Iterator[Threat]:
        """What it is asked: small and large balls of each norm, and a tiny one, in which all methods can prove."""
        for norm in self.norms:
            yield from (Threat(norm, size) for size in (SIZES[norm][0] / 20, *SIZES[norm]))

    def on(self, model: Classifier, threat: Threat, index: Tensor | None = None) -> tuple[Tensor, Certified]:
        """Images, all or some of them in some order, and what is proved of their predictions."""
        images = _images() if index is None else _images()[index]
        labels = model.predict(images)
        ids = torch.arange(COUNT) if index is None else index
        with breaches_told(), fair_play(model, images, labels), torch.no_grad():
            found = self.method.certify(model, images, labels, threat, Streams.of(ids, 0, "certificate"))
        demand(isinstance(found, Certified), f"it gives {type(found).__name__}, not Certified")
        radius = found.radius
        fits = radius.shape == (len(images),) and radius.dtype == torch.float64 and bool((radius >= 0).all())
        demand(fits and bool(radius.isfinite().all()), "radii are no finite float64 of one for each image")
        return images, found


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return ROOM + (1 - 2 * ROOM) * torch.rand(COUNT, *SHAPE, generator=generator)


def _head() -> LogitClassifier:
    """A linear model whose layers can be seen."""
    with seeded(1):
        return LogitClassifier(SequentialBackbone(nn.Sequential(nn.Flatten()), SHAPE), CLASSES)


def _neighbors() -> Classifier:
    """Votes of pixels."""
    backbone = SequentialBackbone(nn.Sequential(nn.Flatten()), SHAPE)
    with seeded(2):
        model = NeighborClassifier(backbone, 8, CLASSES, torch.arange(12) % CLASSES, 3, 0.1)
        model.gallery.copy_(torch.nn.functional.normalize(torch.randn(12, 8), dim=1))
    return model


_MODELS: tuple[tuple[str, Callable[[], Classifier]], ...] = (
    ("a linear model", _head),
    ("a network", lambda: network(CLASSES)),
    ("a smoothed linear model", lambda: Smoothed(_head().eval(), 0.25, 4, 100)),
    ("votes of neighbors", _neighbors),
)


def _bounded(claims: Claims) -> list[tuple[str, Classifier]]:
    """The models that the method can bound."""
    found = []
    threat = next(claims.threats)
    for name, make in _MODELS:
        model = make().eval().requires_grad_(False)
        try:
            claims.on(model, threat)
        except NoCertificate:
            continue
        found.append((name, model))
    if not found:
        raise NotApplicable("it bounds none of the models that it is tried on")
    return found


def _truth(claims: Claims) -> str:
    """Of linear models the exact distance is known; smoothing does not move it."""
    told = []
    for name, model in _bounded(claims):
        head = model.model if isinstance(model, Smoothed) else model
        if not isinstance(head, LogitClassifier) or "linear" not in name:
            continue
        exact = Linear(head.head.weight.detach().double(), head.head.bias.detach().double())
        for threat in claims.threats:
            images, found = claims.on(model, threat)
            flat = images.double().flatten(1)
            scores = exact(flat)
            labels = model.predict(images)
            slopes = exact.slopes(labels)
            gaps = scores.gather(1, labels[:, None]) - scores
            each = [smallest_change(slopes[:, k], gaps[:, k], flat, threat.norm) for k in range(CLASSES)]
            distance = torch.stack(each, dim=1).scatter(1, labels[:, None], torch.inf).amin(dim=1)
            # Within that much of mid-gray images no pixel reaches 0 or 1, and the box plays no part.
            claimed = found.radius.clamp(max=ROOM)
            wrong = (claimed > distance * (1 + 1e-9)) & (_chance(found) == 0)
            demand(
                not bool(wrong.any()), f"{name}: {threat.norm} {float(claimed.max()):.6g} is proved, beyond the truth"
            )
        told.append(name)
    if not told:
        raise NotApplicable("it bounds no linear model")
    return ", ".join(told)


def _chance(found: Certified) -> Tensor:
    return torch.zeros_like(found.radius) if found.chance is None else found.chance


def _unbroken(claims: Claims) -> str:
    told = []
    for name, model in _bounded(claims):
        proved = 0
        for threat in claims.threats:
            images, found = claims.on(model, threat)
            sure = (found.radius > 0) & (_chance(found) == 0)
            for position in sure.nonzero().flatten().tolist():
                radius = min(float(found.radius[position]), threat.radius)
                tried = _around(images[position], threat.norm, radius, position)
                kept = model.predict(tried) == model.predict(images[position : position + 1])
                demand(bool(kept.all()), f"{name}: {threat.norm} {radius:.6g} is proved, and a change within it fools")
                proved += 1
        told.append(f"{proved} proofs on {name}")
    return ", ".join(told)


def _around(image: Tensor, norm: Norm, radius: float, seed: int) -> Tensor:
    """Random images on the border of a ball: corners in Linf, single values in L1, directions in L2."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(TRIED, image.numel(), generator=generator, dtype=torch.float64)
    if norm == "linf":
        change = noise.sign() * radius
    elif norm == "l2":
        change = noise / noise.norm(dim=1, keepdim=True) * radius
    else:
        place = noise.abs().argmax(dim=1, keepdim=True)
        change = torch.zeros_like(noise).scatter(1, place, noise.gather(1, place).sign() * radius)
    changed: Tensor = (image.double() + (1 - 1e-6) * change.unflatten(1, image.shape)).clamp(0, 1)
    return changed.to(image.dtype)


def _batches(claims: Claims) -> str:
    index = torch.arange(COUNT)
    for name, model in _bounded(claims):
        for threat in claims.threats:
            _, whole = claims.on(model, threat)
            for part in (index.flip(0), index[2:3], index[:5]):
                _, found = claims.on(model, threat, part)
                same = torch.allclose(found.radius, whole.radius[part], rtol=1e-6, atol=1e-9)
                demand(same, f"{name}: radii depend on the batch")
    return ""


CERTIFICATES = (
    Rule("radii are below exact distances", _truth),
    Rule("no certified image is fooled by what is tried", _unbroken),
    Rule("batches and their order change nothing", _batches),
)
