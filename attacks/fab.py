"""FAB: the smallest change that fools a model, looked for along its decision boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robbench.attacks._gradients import linearized_margins
from robbench.attacks._hyperplanes import onto_hyperplane
from robbench.attacks._losses import gain_towards, likeliest_others
from robbench.attacks._minimum_norm import ORDERS, Nearest, dual_size, size_of
from robbench.attacks._projections import add, per_sample, project, uniform_in_ball
from robbench.attacks._survivors import Rows, Survivors, staying
from robbench.core.attack import Attack, Loss
from robbench.core.contracts import Classifier
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

SECANT_STEPS = 3
# The share of the bracket by which a secant step aims past the boundary, so that rounding does not matter.
PAST = 0.01


@register_attack("fab", norms=("linf", "l2", "l1"), brief="Fast adaptive boundary attack")
@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack, one target class at a time or towards whichever class is nearest.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    algorithm 1, in the form that AutoAttack uses (by the same authors, ICML 2020). For each of the likeliest other
    classes in turn: project the iterate and the image onto the hyperplane where the linearized scores of that class
    and of the label are equal, go a little beyond both, mix them with a bias towards the image, and pull what fools
    the model back towards the image. Secant steps between the image and the smallest fooling change end a run. Any
    wrong prediction counts. A sample fooled within eps leaves the batch. With ``targets=0`` there is one run, in which
    every step linearizes all other classes and makes for the nearest boundary, as the paper has it. Where targets are
    given there is one run, which follows the target's score minus the best other one.

    Returns the smallest fooling change found; where that is larger than eps, projected into the ball; where there is
    none, the image itself. Costs at most ``1 + runs * (2 * steps + 3)`` forward and ``runs * steps`` backward passes
    for ``restarts * min(targets, K - 1)`` runs; with ``targets=0`` K - 1 times as many backward passes for ``restarts``
    runs.

    Attributes:
        steps: Steps per run.
        targets: Largest number of other classes to try, by the scores of the clean image; 0 for the nearest in every
            step.
        restarts: Rounds over the targets. From the second on, runs start in a random direction, half as far away as
            the smallest change known, or as eps if that is less.
        alpha_max: Largest weight of the projected image against the projected iterate.
        eta: How far to go, as a multiple of the way to the hyperplane.
        beta: The share of a fooling change that the next step starts with.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    targets: Annotated[int, Field(ge=0)] = 9
    restarts: Annotated[int, Field(ge=1)] = 1
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: Annotated[float, Field(ge=1)] = 1.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9

    targetable: ClassVar[bool] = True
    white_box: ClassVar[bool] = True
    losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        """Images with the smallest fooling changes found."""
        everyone = Survivors.of(model, images, labels, threat, rng)
        with torch.no_grad():
            scores, decisions = model.decide(images)
        margins = everyone.gain("margin")(scores).double()
        goals: Sequence[Tensor | None] = (None,)
        if self.targets and not threat.targeted:
            goals = likeliest_others(scores, labels, self.targets).unbind(dim=1)
        nearest = Nearest(images.clone(), torch.where(everyone.fooled(decisions), 0.0, math.inf).double())
        # Where the smallest change is asked for, only none at all is small enough to stop.
        enough = 0.0 if threat.eps is None else threat.eps
        for restart in range(self.restarts):
            for rank, goal in enumerate(goals):
                left = everyone[nearest.sizes > enough]
                if not left:
                    break
                rivals = None if goal is None else goal[left.index]
                run, x_0 = _BoundaryRun(left.alone(), rivals, threat.norm, enough), left.images
                if restart > 0:
                    near = nearest.sizes[left.index].clamp(max=threat.radius)
                    x_0 = _random_start(run, near, restart, rank)
                found, sizes = _refine(run, margins[left.index], *self._approach(run, x_0))
                nearest.offer(left, found, sizes, sizes.isfinite())
        if threat.eps is None:
            return nearest.images
        inside = per_sample(nearest.sizes <= threat.eps, images)
        return torch.where(inside, nearest.images, project(images, nearest.images - images, threat.norm, threat.eps))

    def passes(self, num_classes: int) -> tuple[int, int]:
        """The first look; per run two forward and one backward pass a step, and three looks in the end."""
        others = num_classes - 1
        runs = self.restarts * min(self.targets or 1, others)
        return 1 + runs * (2 * self.steps + SECANT_STEPS), runs * self.steps * (1 if self.targets else others)

    def _approach(self, run: _BoundaryRun, x_i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The smallest fooling changes along the way.

        Returns:
            The images, shape ``(M, C, H, W)``; the norms of their changes, float64, shape ``(M,)``, infinite where
            nothing fooled; the margins there, shape ``(M,)``.
        """
        nearest = Nearest.to(run.left.images)
        margins = torch.zeros_like(nearest.sizes)
        for _ in range(self.steps):
            x_i = self._step(run, x_i)
            margin, fooled = run.left.look(x_i, run.left.gain("margin"))
            better = nearest.offer(run.left, x_i, run.sizes(x_i), fooled)
            margins[run.left.index[better]] = margin[better].double()
            back = run.left.images + self.beta * (x_i - run.left.images)
            x_i = torch.where(per_sample(fooled, x_i), back, x_i)
            run, x_i = staying(nearest.sizes[run.left.index] > run.enough, run, x_i)
            if not run.left:
                break
        return nearest.images, nearest.sizes, margins

    def _step(self, run: _BoundaryRun, x_i: Tensor) -> Tensor:
        """Equation 9: between the projections of the iterate and of the image, each overshot by eta."""
        x = run.left.images
        g, f = run.linearized(x_i)
        f = f.to(x_i.dtype)
        f_at_x = f + (g * (x - x_i)).flatten(1).sum(dim=1)
        starts = torch.stack([x_i, x])
        deltas = onto_hyperplane(starts, g, torch.stack([f, f_at_x]), run.norm)
        size_i, size_x = (torch.linalg.vector_norm(delta.flatten(1), ORDERS[run.norm], dim=1) for delta in deltas)
        alpha = (size_i / (size_i + size_x).clamp(min=torch.finfo(size_i.dtype).tiny)).clamp(max=self.alpha_max)
        from_x_i, from_x = torch.add(starts, deltas, alpha=self.eta)
        return torch.lerp(from_x_i, from_x, per_sample(alpha, x_i)).clamp(0, 1)


@register_attack("fab-minimal", norms=("linf", "l2", "l1"), brief="FAB for the smallest change")
@dataclass(frozen=True)
class MinimalFAB(FAB):
    """FAB without an eps: every run goes on to its end, and the smallest fooling change counts.

    Returns the image itself where nothing fools the model. Costs what FAB costs for a sample that it does not fool.
    """

    bounded: ClassVar[bool] = False


@dataclass(frozen=True)
class _BoundaryRun(Rows):
    """Samples on their way to one other class each, or to any.

    Attributes:
        left: The samples.
        rivals: The classes to make for, shape ``(M,)``; None for the targets that are given, or else the nearest.
        norm: What is to be small.
        enough: Norm of a fooling change at which a sample is done.
    """

    left: Survivors
    rivals: Tensor | None
    norm: Norm
    enough: float

    def linearized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient, of the shape of ``x``, and value, shape ``(M,)``, of the margin of the class to make for.

        Without one, of the class whose linearized boundary is nearest.
        """
        if self.rivals is not None or self.left.targeted:
            towards = None if self.rivals is None else gain_towards("margin", self.left.labels, self.rivals)
            g, f, _ = self.left.gradient(x, towards or self.left.gain("margin"))
            return g, f
        g, f = torch.zeros_like(x), x.new_zeros(len(x))
        nearest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        for margin, slope in linearized_margins(self.left.model, x, self.left.labels):
            distance = margin.double().abs() / dual_size(slope, self.norm)
            nearer = distance < nearest
            g, f = torch.where(per_sample(nearer, x), slope, g), torch.where(nearer, margin.to(f.dtype), f)
            nearest = torch.minimum(nearest, distance)
        return g, f

    def sizes(self, x: Tensor) -> Tensor:
        """Norms of the changes that lead to ``x``, float64, shape ``(M,)``."""
        return size_of(x.double() - self.left.images.double(), self.norm)


def _refine(run: _BoundaryRun, inner: Tensor, found: Tensor, sizes: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Bring fooling images nearer on the line to the clean ones, by secant steps on the margin (section 2.5).

    Args:
        run: The samples.
        inner: Margins at the clean images, float64, shape ``(M,)``.
        found: Fooling images, shape ``(M, C, H, W)``, where the sizes are finite.
        sizes: Norms of their changes, float64, shape ``(M,)``.
        outer: Margins there, shape ``(M,)``.
    """
    far = (sizes > run.enough) & sizes.isfinite()
    run, inner, outer = run[far], inner[far], outer[far]
    if not run.left:
        return found, sizes
    x, nearest = run.left.images, found[far]
    delta = nearest - x
    low, high = torch.zeros_like(inner), torch.ones_like(inner)
    for _ in range(SECANT_STEPS):
        # Where hard predictions do not follow the scores, these say nothing about where the crossing is.
        crossing = torch.where((inner < 0) & (outer > 0), inner / (inner - outer), 0.5)
        place = low + (high - low) * (crossing + PAST * (1 - crossing))
        points = (x + per_sample(place, delta).to(delta.dtype) * delta).clamp(0, 1)
        margin, fooled = run.left.look(points, run.left.gain("margin"))
        nearest, margin = torch.where(per_sample(fooled, points), points, nearest), margin.double()
        low, inner = torch.where(fooled, low, place), torch.where(fooled, inner, margin)
        high, outer = torch.where(fooled, place, high), torch.where(fooled, margin, outer)
    found[far], sizes[far] = nearest, run.sizes(nearest)
    return found, sizes


def _random_start(run: _BoundaryRun, near: Tensor, restart: int, rank: int) -> Tensor:
    """Images moved half as far as ``near``, shape ``(M,)``, or half as far as the box allows if that is less."""
    x = run.left.images
    direction = uniform_in_ball(run.left.rng, ("start", restart, rank), x, run.norm, 1.0)
    farthest = size_of(torch.maximum(x, 1 - x).double(), run.norm)
    length = 0.5 * torch.minimum(near, farthest) / size_of(direction.double(), run.norm)
    return add(x, per_sample(length, x).to(x.dtype) * direction)
