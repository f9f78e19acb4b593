"""Interval and linear bounds of a network on a ball around images (IBP, CROWN), and what rounding can change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robbench.certificates._layers import Interval, MaxPool, applied
from robbench.certificates._network import Evaluated, Network
from robbench.core.certificate import Certified, NoCertificate
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Threat

BUDGET = 2**20
"""Coefficients that go back through a network side by side: 8 MB in float64, since more than caches hold is slow."""
VALUES = 2**22
"""Values of a network that are kept at once for a batch of images."""


@dataclass(frozen=True)
class Ball:
    """Images that an attacker can reach: within eps of given ones, and in [0, 1].

    Attributes:
        images: The given ones, shape ``(N, C, H, W)``.
        threat: Norm (Linf, L2 or L1) and eps.
    """

    images: Tensor
    threat: Threat

    @property
    def box(self) -> Interval:
        """Bounds of every pixel."""
        eps = self.threat.radius
        return Interval((self.images - eps).clamp(min=0), (self.images + eps).clamp(max=1))

    def least(self, rows: Tensor) -> Tensor:
        """The least of linear functions of the images, shape ``(N, M)``: exact in Linf, a lower bound in L2 and L1.

        Args:
            rows: Coefficients, shape ``(N or 1, M, C, H, W)``.
        """
        within = self.box.least(rows)
        if self.threat.norm == "linf":
            return within
        dual = torch.linalg.vector_norm(rows.flatten(2), 2 if self.threat.norm == "l2" else torch.inf, dim=2)
        return torch.maximum(within, applied(rows, self.images) - self.threat.radius * dual)


@dataclass(frozen=True)
class Bounds:
    """Bounds of every value of a network over a ball.

    Attributes:
        ball: Where they hold.
        network: The network on the ball's images.
        intervals: Bounds of what stands at each position as it is computed, the images first.
        rounding: By how much each can be off for rounding there; None where it is exact.
    """

    ball: Ball
    network: Evaluated
    intervals: tuple[Interval, ...]
    rounding: tuple[Tensor | None, ...]

    def least(self, rows: Tensor, at: int | None = None, *, linear: bool = True) -> Tensor:
        """Lower bounds of linear functions of what stands at a position, shape ``(N, M)``.

        Args:
            rows: Coefficients, shape ``(N, M, ...)``; ``N`` may be 1 where no nonlinear layer lies before.
            at: The position; the scores where it is None.
            linear: Whether nonlinear layers are bounded by linear functions down to the images (CROWN); otherwise by
                the intervals behind the last of them (IBP).
        """
        start = len(self.intervals) - 1 if at is None else at
        waiting, total = {start: rows}, rows.new_zeros(())
        for position in range(start, 0, -1):
            if position not in waiting:
                continue
            layer, inputs = self.network.layers[position - 1], self.network.inputs[position - 1]
            own, rounded = waiting.pop(position), self.rounding[position]
            if rounded is not None:
                total = total - applied(own.abs(), rounded)
            if layer.nonlinear and not linear:
                total = total + self.intervals[position].least(own)
                continue
            passed, constants = layer.backward(own, [self.intervals[source] for source in inputs])
            total = total + constants
            for source, part in zip(inputs, passed, strict=True):
                waiting[source] = waiting[source] + part if source in waiting else part
        return total + self.ball.least(waiting[0]) if 0 in waiting else total

    def margins(self, labels: Tensor, *, linear: bool) -> Tensor:
        """Lower bounds of the label's score minus each other score, shape ``(N, K)``; infinite at the label.

        Args:
            labels: int64, shape ``(N,)``.
            linear: See ``least``; the larger of both bounds where it holds.
        """
        scores = self.network.values[-1]
        each = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
        parts = []
        for others in each.split(self.rows_at_once(len(labels))):
            rows = each[labels].unsqueeze(1) - others
            found = self.least(rows, linear=False)
            parts.append(torch.maximum(found, self.least(rows)) if linear else found)
        return torch.cat(parts, dim=1).scatter(1, labels.unsqueeze(1), torch.inf)

    def rows_at_once(self, count: int) -> int:
        """How many rows for each of so many images go back through the network side by side."""
        largest = max(values[0].numel() for values in self.network.values)
        return max(1, BUDGET // (count * largest))


def propagate(network: Network, images: Tensor, threat: Threat, *, linear: bool = False, unit: float = 0.0) -> Bounds:
    """Bounds of every value of a network over balls around images.

    Intervals go forward layer by layer (Gowal et al., 2018); before the first nonlinear layer, L2 and L1 balls are
    bounded by their dual norms. It can be differentiated by the weights.

    Args:
        network: The network.
        images: In [0, 1], shape ``(N, C, H, W)``; bounds are in their type.
        threat: Norm (Linf, L2 or L1) and eps.
        linear: Whether to tighten what enters nonlinear layers by linear bounds (CROWN, Zhang et al., 2018).
        unit: Unit roundoff of the network's arithmetic, whose errors the bounds are to include; 0 for exact arithmetic.
    """
    evaluated, ball = network(images), Ball(images, threat)
    bounds = Bounds(ball, evaluated, (ball.box,), (None,))
    plain, mixed = [True], [0]
    for position, (layer, inputs) in enumerate(zip(evaluated.layers, evaluated.inputs, strict=True), 1):
        given = [bounds.intervals[source] for source in inputs]
        found, rounded = layer.interval(*given), layer.rounding([one.size for one in given], unit) if unit else None
        if rounded is not None:
            found = Interval(found.lower - rounded, found.upper + rounded)
        plain.append(not layer.nonlinear and all(plain[source] for source in inputs))
        mixed.append(max(mixed[source] for source in inputs) + layer.mixes)
        users = [user for user, sources in zip(evaluated.layers, evaluated.inputs, strict=True) if position in sources]
        bounds = replace(bounds, intervals=(*bounds.intervals, found), rounding=(*bounds.rounding, rounded))
        if layer.nonlinear or not any(user.nonlinear for user in users):
            continue
        if plain[position] and threat.norm != "linf":
            found = _dual(bounds)
        elif linear and not (plain[position] and mixed[position] <= 1):
            every = any(isinstance(user, MaxPool) for user in users)
            found = _tightened(bounds, torch.ones_like(found.lower, dtype=torch.bool) if every else found.open)
        bounds = replace(bounds, intervals=(*bounds.intervals[:-1], found))
    return bounds


def _dual(bounds: Bounds) -> Interval:
    """Bounds of the last position, before which no layer is nonlinear: one linear function for all images."""
    lower, upper = bounds.intervals[-1]
    position, shape, count = len(bounds.intervals) - 1, lower.shape[1:], lower[0].numel()
    found = []
    for part in torch.arange(count, device=lower.device).split(bounds.rows_at_once(1)):
        rows = torch.zeros(1, len(part), count, dtype=lower.dtype, device=lower.device)
        rows = rows.scatter(2, part[None, :, None], 1.0).unflatten(2, shape)
        found.append(torch.stack([bounds.least(rows, position), -bounds.least(-rows, position)]))
    least, most = torch.cat(found, dim=2).unflatten(2, shape)
    return Interval(torch.maximum(lower, least), torch.minimum(upper, most))


def _tightened(bounds: Bounds, wanted: Tensor) -> Interval:
    """Bounds of the last position, some of them tightened by linear bounds.

    Args:
        bounds: Up to that position.
        wanted: Which to tighten, bool, shape ``(N, ...)``.
    """
    shape, position, mask = wanted.shape[1:], len(bounds.intervals) - 1, wanted.flatten(1)
    lower, upper = (ends.flatten(1) for ends in bounds.intervals[-1])
    most = int(mask.sum(dim=1).max()) if len(mask) else 0
    places = mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    for part in places.split(bounds.rows_at_once(2 * len(mask)), dim=1) if most else ():
        rows = torch.zeros(*part.shape, mask.shape[1], dtype=lower.dtype, device=lower.device)
        rows = rows.scatter(2, part.unsqueeze(2), 1.0).unflatten(2, shape)
        ends = bounds.least(torch.cat([rows, -rows], dim=1), position).tensor_split(2, dim=1)
        inside = mask.gather(1, part)
        least = torch.maximum(lower.gather(1, part), torch.where(inside, ends[0], -torch.inf))
        greatest = torch.minimum(upper.gather(1, part), torch.where(inside, -ends[1], torch.inf))
        lower, upper = lower.scatter(1, part, least), upper.scatter(1, part, greatest)
    return Interval(lower.unflatten(1, shape), upper.unflatten(1, shape))


def unit_roundoff(model: nn.Module, images: Tensor) -> float:
    """Unit roundoff of the least exact type that a model computes in.

    Args:
        model: The model.
        images: What it is given.
    """
    types = {images.dtype, *(one.dtype for one in model.state_dict().values() if one.is_floating_point())}
    unit = max(torch.finfo(dtype).eps / 2 for dtype in types)
    tensor_cores = images.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return max(unit, 2.0**-11) if tensor_cores and unit < 2.0**-11 else unit


def proved(model: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, linear: bool) -> Certified:
    """Images whose label keeps the largest score all over a ball, by interval or linear bounds.

    Bounds are computed in float64 and hold for the scores as the model computes them: every layer may be off by what
    rounding can make of its sums, in whatever order. At the images themselves, the model's scores are compared.

    Args:
        model: The model, in evaluation mode.
        images: In [0, 1], shape ``(N, C, H, W)``.
        labels: Its predictions, int64, shape ``(N,)``.
        threat: Norm (Linf, L2 or L1) and eps.
        linear: Whether by linear bounds.

    Raises:
        NoCertificate: If a layer cannot be bounded, or the model is not what its layers make of images.
    """
    network = network_of(model, images)
    with torch.no_grad():
        size = sum(values[0].numel() for values in network(images[:1].double()).values)
        parts = torch.arange(len(images)).split(max(1, VALUES // size))
        found = [_proved(model, network, images[part], labels[part], threat, linear) for part in parts]
    return Certified.where(torch.cat(found), threat)


def _proved(
    model: Classifier, network: Network, images: Tensor, labels: Tensor, threat: Threat, linear: bool
) -> Tensor:
    # Of the bounds' own rounding, far below that of float32, a few units more are enough.
    unit = unit_roundoff(model, images) + 64 * torch.finfo(torch.float64).eps
    check_same(model, images, propagate(network, images.double(), replace(threat, eps=0.0), unit=unit).intervals[-1])
    bounds = propagate(network, images.double(), threat, linear=linear, unit=unit)
    found: Tensor = (bounds.margins(labels, linear=linear) > 0).all(dim=1)
    return found


def network_of(model: Classifier, images: Tensor) -> Network:
    """The layers of a classifier whose prediction is the class with the largest score.

    Args:
        model: The classifier, in evaluation mode.
        images: Some images.

    Raises:
        NoCertificate: If its prediction is made otherwise, or a layer cannot be bounded.
    """
    kind = type(model)
    if kind.predict is not Classifier.predict or kind.decide is not Classifier.decide:
        raise NoCertificate(f"the prediction of {kind.__name__} is not the class with the largest score")
    return Network.of(model, images.shape[1:])


def check_same(model: nn.Module, images: Tensor, scores: Interval) -> None:
    """See that a model's answers are those of its layers; two more images tell whether others in a batch matter.

    Args:
        model: The model.
        images: Shape ``(N, C, H, W)``.
        scores: What its layers make of them, rounding included.

    Raises:
        NoCertificate: If they are something else.
    """
    answers = model(torch.cat([images, images[:1], images[:1]])).double()[: len(images)]
    if answers.shape != scores.lower.shape:
        raise NoCertificate("the model's scores are not what its layers make of the images")
    apart = torch.maximum(scores.lower - answers, answers - scores.upper)
    if not bool((apart <= 0).all()):
        raise NoCertificate(f"the model's scores are {float(apart.max()):.3g} off what its layers make of the images")
