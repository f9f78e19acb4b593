"""A Lipschitz bound as a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robbench.certificates._bounds import Bounds, check_same, network_of, propagate, unit_roundoff
from robbench.certificates._layers import Affine, Convolution, Dense, Joined, Layer, Nonnegative, ReLU, Scale, Sum
from robbench.certificates._network import Evaluated
from robbench.core.certificate import Certificate, Certified, NoCertificate
from robbench.core.contracts import Classifier
from robbench.core.registry import register_certificate
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

ROUNDED = 1 + 1e-9
"""What norms are enlarged by, for what float64 makes of them."""


@register_certificate("lipschitz", norms=("l2", "linf", "l1"))
@dataclass(frozen=True)
class LipschitzBound(Certificate):
    """The margin over a Lipschitz constant: the product of the norms of all layers (Szegedy et al., 2014).

    Norms are bounded from above: exactly for linear layers; for convolutions in L2 by √(‖W‖₁ ‖W‖∞), and in Linf and L1
    exactly. The last linear layers count by the row of each margin.
    """

    def certify(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Certified:
        """Radii in the threat's norm.

        Raises:
            NoCertificate: If the norm of a layer is not known.
        """
        network = network_of(model, images)
        unit = unit_roundoff(model, images) + 64 * torch.finfo(torch.float64).eps
        bounds = propagate(network, images.double(), Threat(threat.norm, threat.radius), unit=unit)
        still = propagate(network, images.double(), Threat(threat.norm, 0.0), unit=unit)
        check_same(model, images, still.intervals[-1])
        scores = bounds.network.values[-1]
        slopes = _slopes(bounds.network, scores.shape[1], threat.norm)
        slack = _errors(bounds)
        gaps = scores.gather(1, labels[:, None]) - scores - slack - slack.gather(1, labels[:, None])
        radii = (gaps / slopes[labels]).scatter(1, labels[:, None], torch.inf).amin(dim=1).clamp(min=0)
        # Rounding is known within eps alone, and beyond the diagonal of the box there is nothing.
        return Certified(radii.clamp(max=threat.radius))


def _errors(bounds: Bounds) -> Tensor:
    """By how much each score, as it is computed anywhere in the ball, can be off; shape ``(N, K)``."""
    found = [torch.zeros_like(bounds.network.values[0])]
    for layer, inputs, own in zip(bounds.network.layers, bounds.network.inputs, bounds.rounding[1:], strict=True):
        given = [found[source] for source in inputs]
        error = layer.absolute(*given) if isinstance(layer, Affine) else layer(*given)
        found.append(error if own is None else error + own)
    return found[-1]


def _slopes(network: Evaluated, classes: int, norm: Norm) -> Tensor:
    """Lipschitz constants of the differences of two scores, shape ``(K, K)``; 1 on the diagonal."""
    constants = _constants(network, norm)
    each = torch.eye(classes, dtype=torch.float64, device=network.values[0].device)
    waiting = {len(network.layers): (each[:, None] - each).flatten(0, 1)[None]}
    total = torch.zeros(classes * classes, dtype=torch.float64, device=each.device)
    dual = {"l2": 2.0, "linf": 1.0, "l1": torch.inf}[norm]
    for position in range(len(network.layers), -1, -1):
        if position not in waiting:
            continue
        rows = waiting.pop(position)
        layer = network.layers[position - 1] if position else None
        if layer is None or layer.nonlinear:
            total = total + torch.linalg.vector_norm(rows.flatten(2), dual, dim=2)[0] * constants[position]
            continue
        passed, _ = layer.backward(rows, ())
        for source, part in zip(network.inputs[position - 1], passed, strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part
    pairs: Tensor = (total * ROUNDED).clamp_min(torch.finfo(torch.float64).tiny).unflatten(0, (classes, classes))
    return pairs + each


def _constants(network: Evaluated, norm: Norm) -> list[float]:
    """Lipschitz constants of what stands at each position, the images first."""
    found = [1.0]
    for layer, inputs in zip(network.layers, network.inputs, strict=True):
        given = [found[source] for source in inputs]
        value = network.values[inputs[0]]
        found.append(_through(layer, given, value, norm))
    return found


def _through(layer: Layer, given: Sequence[float], value: Tensor, norm: Norm) -> float:
    if isinstance(layer, ReLU):
        return given[0]
    if isinstance(layer, Sum | Joined):
        return sum(given)
    if not isinstance(layer, Affine):
        raise NoCertificate(f"the Lipschitz constant of {type(layer).__name__} is not known")
    return given[0] * operator_norm(layer, value, norm) * ROUNDED


def operator_norm(layer: Affine, value: Tensor, norm: Norm) -> float:
    """An upper bound of a linear layer's norm.

    Args:
        layer: The layer.
        value: What enters it, shape ``(N, ...)``.
        norm: Of what enters and of what leaves.
    """
    if isinstance(layer, Dense) and norm == "l2":
        return float(torch.linalg.matrix_norm(layer.weight, 2))
    if isinstance(layer, Nonnegative) and layer.terms == 0:
        return 1.0
    ones = torch.ones_like(value[:1])
    rows = layer.absolute(ones)  # sums of magnitudes over what each output sees
    if norm == "linf":
        return float(rows.amax())
    columns = _magnitudes(layer).transposed(torch.ones_like(rows)).amax()
    return float(columns) if norm == "l1" else float((columns * rows.amax()).sqrt())


def _magnitudes(layer: Affine) -> Affine:
    """The layer with every weight replaced by its magnitude."""
    if isinstance(layer, Dense):
        return Dense(layer.weight.abs(), None)
    if isinstance(layer, Convolution):
        rest = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.shape)
        return Convolution(layer.weight.abs(), None, *rest)
    return Scale(layer.factor.abs(), layer.shift) if isinstance(layer, Scale) else layer
