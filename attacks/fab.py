"""FAB: the smallest change that fools a model, looked for along its decision boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import score_gradient, succeeded
from robbench.attacks._hyperplanes import onto_hyperplane
from robbench.attacks._losses import gain, gain_towards
from robbench.attacks._projections import add, per_sample, project, uniform_in_ball
from robbench.core.contracts import Attack, Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

SECANT_STEPS = 3
# The share of the bracket by which a secant step aims past the boundary, so that rounding does not decide.
PAST = 0.01


@register_attack("fab", norms=("linf", "l2", "l1"), brief="Fast adaptive boundary attack")
@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack, one target class at a time.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    algorithm 1, in the form that AutoAttack uses (by the same authors, ICML 2020). For each of the likeliest other
    classes in turn: project the iterate and the image onto the hyperplane where the linearized scores of that class
    and of the label are equal, go a little beyond both, mix them with a bias towards the image, and pull what fools
    the model back towards the image. Secant steps between the image and the smallest fooling change end a run. Any
    wrong decision fools. A sample fooled within eps leaves the batch. With targets there is one run, which follows the
    target's score less the best other one.

    Returns the smallest fooling change found; where that is larger than eps, projected into the ball; where there is
    none, the image itself. Costs at most ``1 + runs * (2 * steps + 3)`` forward and ``runs * steps`` backward passes
    for ``restarts * min(targets, K - 1)`` runs.

    Attributes:
        steps: Steps per run.
        targets: Largest number of other classes to try, by the scores of the unchanged image.
        restarts: Rounds over the targets. From the second on, runs start in a random direction, half as far away as
            the smallest change known, or as eps if that is less.
        alpha_max: Largest weight of the projected image against the projected iterate.
        eta: How far to go, as a multiple of the way to the hyperplane.
        beta: The share of a fooling change that the next step starts with.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    targets: Annotated[int, Field(ge=1)] = 9
    restarts: Annotated[int, Field(ge=1)] = 1
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: Annotated[float, Field(ge=1)] = 1.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    margin_loss: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images with the smallest fooling changes found."""
        with torch.no_grad():
            scores, decisions = model.decide(images)
        margins = gain("margin", labels, threat.targeted)(scores).double()
        rivals = self._rivals(scores, labels, threat.targeted)
        fooled = succeeded(decisions, labels, threat.targeted)
        best, sizes = images.clone(), torch.where(fooled, 0.0, math.inf).double()
        # Where the smallest change is asked for, only none at all is small enough to stop.
        enough = 0.0 if threat.eps is None else threat.eps
        for restart in range(self.restarts):
            for rank in range(rivals.shape[1]):
                active = (sizes > enough).nonzero().flatten()
                if len(active) == 0:
                    break
                run = _Run(model.subset(active), images[active], labels[active], rivals[active, rank], threat, enough)
                start = run.images
                if restart > 0:
                    near = sizes[active].clamp(max=threat.radius)
                    start = _random_start(run, near, rng[active], restart, rank)
                found, reached = _refine(run, margins[active], *self._approach(run, start))
                better = reached < sizes[active]
                best[active[better]], sizes[active[better]] = found[better], reached[better]
        if threat.eps is None:
            return best
        inside = per_sample(sizes <= threat.eps, images)
        return torch.where(inside, best, project(images, best - images, threat.norm, threat.eps))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The first look; per run two forward and one backward pass a step, and three looks in the end."""
        runs = self.restarts * min(self.targets, num_classes - 1)
        return 1 + runs * (2 * self.steps + SECANT_STEPS), runs * self.steps

    def _rivals(self, scores: Tensor, labels: Tensor, targeted: bool) -> Tensor:
        """The classes to make for, one run each, shape ``(N, runs)``."""
        if targeted:
            return labels[:, None]
        others = scores.scatter(1, labels[:, None], -math.inf)
        count = min(self.targets, scores.shape[1] - 1)
        return others.argsort(dim=1, descending=True, stable=True)[:, :count]

    def _approach(self, run: _Run, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The smallest fooling changes along the way.

        Returns:
            The images, shape ``(N, C, H, W)``; the norms of their changes, float64, shape ``(N,)``, infinite where
            nothing fooled; the margins there, shape ``(N,)``.
        """
        found, sizes = run.images.clone(), torch.full_like(run.labels, math.inf, dtype=torch.float64)
        margins = torch.zeros_like(sizes)
        index, points = torch.arange(len(start), device=start.device), start
        for _ in range(self.steps):
            points = self._step(run, points)
            fooled, margin = run.look(points)
            reached = _norms(points.double() - run.images.double(), run.threat.norm)
            better = fooled & (reached < sizes[index])
            hit = index[better]
            found[hit], sizes[hit], margins[hit] = points[better], reached[better], margin[better]
            back = run.images + self.beta * (points - run.images)
            points = torch.where(per_sample(fooled, points), back, points)
            stays = sizes[index] > run.enough
            if not bool(stays.all()):
                run, points, index = run.subset(stays), points[stays], index[stays]
                if len(index) == 0:
                    break
        return found, sizes, margins

    def _step(self, run: _Run, points: Tensor) -> Tensor:
        gradient, values, _ = score_gradient(run.model, points, run.objective)
        values = values.to(points.dtype)
        at_images = values + (gradient * (run.images - points)).flatten(1).sum(dim=1)
        starts = torch.stack([points, run.images])
        changes = onto_hyperplane(starts, gradient, torch.stack([values, at_images]), run.threat.norm)
        onward, anew = (_norms(change, run.threat.norm) for change in changes)
        share = onward / (onward + anew).clamp(min=torch.finfo(onward.dtype).tiny)
        onward_point, anew_point = torch.add(starts, changes, alpha=self.eta)
        bias = per_sample(share.clamp(max=self.alpha_max), points)
        return torch.lerp(onward_point, anew_point, bias).clamp(0, 1)


@register_attack("fab-minimal", norms=("linf", "l2", "l1"), brief="FAB for the smallest change")
@dataclass(frozen=True)
class MinimalFAB(FAB):
    """FAB without an eps: every run goes on to its end, and the smallest fooling change counts.

    Returns the image itself where nothing fools the model. Costs what FAB costs for a sample that it does not fool.
    """

    bounded: ClassVar[bool] = False


@dataclass(frozen=True)
class _Run:
    """Samples on their way to one other class each.

    Attributes:
        model: The model's view of the samples.
        images: The unchanged images, shape ``(N, C, H, W)``.
        labels: The classes to leave, or the targets, shape ``(N,)``.
        rivals: The classes to make for, shape ``(N,)``.
        threat: The norm, and whether labels are targets.
        enough: Norm of a fooling change at which a sample is done.
    """

    model: Classifier
    images: Tensor
    labels: Tensor
    rivals: Tensor
    threat: Threat
    enough: float

    def subset(self, index: Tensor) -> _Run:
        """Some of the samples, by a mask or indices."""
        model, images, labels = self.model.subset(index), self.images[index], self.labels[index]
        return _Run(model, images, labels, self.rivals[index], self.threat, self.enough)

    def objective(self, scores: Tensor) -> Tensor:
        """What is zero on the boundary to cross, from scores ``(N, K)`` to values ``(N,)``."""
        if self.threat.targeted:
            return gain("margin", self.labels, True)(scores)
        return gain_towards("margin", self.labels, self.rivals)(scores)

    def look(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Whether points fool the model, and by which margin of the scores; one forward pass."""
        with torch.no_grad():
            scores, decisions = self.model.decide(points)
        margins = gain("margin", self.labels, self.threat.targeted)(scores)
        return succeeded(decisions, self.labels, self.threat.targeted), margins.double()


def _refine(run: _Run, inner: Tensor, found: Tensor, sizes: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Bring fooling images nearer on the line to the unchanged ones, by secant steps on the margin (section 2.5).

    Args:
        run: The samples.
        inner: Margins at the unchanged images, float64, shape ``(N,)``.
        found: Fooling images, shape ``(N, C, H, W)``, where the sizes are finite.
        sizes: Norms of their changes, float64, shape ``(N,)``.
        outer: Margins there, shape ``(N,)``.
    """
    index = ((sizes > run.enough) & sizes.isfinite()).nonzero().flatten()
    if len(index) == 0:
        return found, sizes
    run, inner, outer = run.subset(index), inner[index], outer[index]
    nearest, change = found[index], found[index] - run.images
    low, high = torch.zeros_like(inner), torch.ones_like(inner)
    for _ in range(SECANT_STEPS):
        # Where hard decisions do not follow the scores, these say nothing about where the crossing is.
        crossing = torch.where((inner < 0) & (outer > 0), inner / (inner - outer), 0.5)
        place = low + (high - low) * (crossing + PAST * (1 - crossing))
        points = (run.images + per_sample(place, change).to(change.dtype) * change).clamp(0, 1)
        fooled, margin = run.look(points)
        nearest = torch.where(per_sample(fooled, points), points, nearest)
        low, inner = torch.where(fooled, low, place), torch.where(fooled, inner, margin)
        high, outer = torch.where(fooled, place, high), torch.where(fooled, margin, outer)
    found, sizes = found.clone(), sizes.clone()
    found[index], sizes[index] = nearest, _norms(nearest.double() - run.images.double(), run.threat.norm)
    return found, sizes


def _random_start(run: _Run, near: Tensor, rng: Streams, restart: int, rank: int) -> Tensor:
    """Images moved half as far as ``near``, shape ``(N,)``, or half as far as the box allows if that is less."""
    images, norm = run.images, run.threat.norm
    direction = uniform_in_ball(rng, ("start", restart, rank), images, norm, 1.0)
    farthest = _norms(torch.maximum(images, 1 - images).double(), norm)
    length = 0.5 * torch.minimum(near, farthest) / _norms(direction.double(), norm)
    return add(images, per_sample(length, images).to(images.dtype) * direction)


def _norms(change: Tensor, norm: Norm) -> Tensor:
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    sizes: Tensor = torch.linalg.vector_norm(change.flatten(1), order, dim=1)
    return sizes
