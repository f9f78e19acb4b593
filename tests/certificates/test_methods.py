from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from certified import Plain, exact_linf, tiny_relu
from torch import nn

from robbench.certificates._layers import Convolution, Dense
from robbench.certificates.lipschitz import LipschitzBound, operator_norm
from robbench.certificates.neighbors import NeighborsBound
from robbench.certificates.smoothing import SmoothingBound, certified_radius
from robbench.core.certificate import NoCertificate
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.defenses.smoothing import Smoothed
from robbench.models._backbone import SequentialBackbone
from robbench.models._neighbors import NeighborClassifier

RNG = Streams.of(torch.arange(8), 0)


# --- smoothing


def halfspace(distance: float) -> tuple[Plain, torch.Tensor]:
    """A linear model at a known L2 distance from the border, and an image."""
    head = nn.Linear(16, 2, dtype=torch.float64)
    slope = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.stack([slope, torch.zeros_like(slope)]))
        assert head.bias is not None
        head.bias.copy_(torch.tensor([distance * slope.norm() - 0.5 * slope.sum(), 0.0]))
    return Plain(nn.Sequential(nn.Flatten(), head), 2), image


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_smoothing_of_a_linear_model_proves_most_of_its_distance(sigma: float) -> None:
    model, image = halfspace(1.5 * sigma)
    method = SmoothingBound(n=4000)
    found = method.certify(Smoothed(model, sigma, 4, 100), image, torch.tensor([0]), Threat("l2", sigma), RNG[:1])
    assert 1.3 * sigma < float(found.radius) < 1.5 * sigma
    assert found.chance is not None
    assert 0.001 < float(found.chance) < 1


def test_smoothing_reaches_its_ceiling_where_every_draw_is_right() -> None:
    assert certified_radius(100_000, 100_000, 0.5, 0.001) == pytest.approx(3.81 * 0.5, abs=0.005)
    model, image = halfspace(5.0)
    found = SmoothingBound(n=1000).certify(
        Smoothed(model, 0.25, 4, 100), image, torch.tensor([0]), Threat("l2", 0.1), RNG[:1]
    )
    assert float(found.radius) == pytest.approx(certified_radius(1000, 1000, 0.25, 0.001))


def test_smoothing_abstains_on_a_class_that_is_not_selected_and_refuses_other_models() -> None:
    model, image = halfspace(0.5)
    found = SmoothingBound(n=100).certify(
        Smoothed(model, 0.25, 4, 100), image, torch.tensor([1]), Threat("l2", 0.1), RNG[:1]
    )
    assert float(found.radius) == 0
    with pytest.raises(NoCertificate, match="put the defense smoothing in front"):
        SmoothingBound().certify(model, image, torch.tensor([0]), Threat("l2", 0.1), RNG[:1])


# --- Lipschitz bounds


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_lipschitz_bound_of_a_linear_model_is_exact(norm: Norm) -> None:
    torch.manual_seed(0)
    head = nn.Linear(9, 3, dtype=torch.float64)
    model, images = Plain(nn.Sequential(nn.Flatten(), head), 3), torch.rand(6, 1, 3, 3, dtype=torch.float64)
    scores = model(images)
    labels = scores.argmax(dim=1)
    dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    slopes = torch.linalg.vector_norm(head.weight[labels][:, None] - head.weight, dual, dim=2)
    exact = ((scores.gather(1, labels[:, None]) - scores) / slopes).nan_to_num(torch.inf).amin(dim=1)
    found = LipschitzBound().certify(model, images, labels, Threat(norm, 100.0), RNG[:6]).radius
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_no_lipschitz_bound_reaches_beyond_the_exact_distance() -> None:
    for seed in range(4):
        model = tiny_relu(seed, hidden=3)
        images = torch.rand(3, 1, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        labels = model(images).argmax(dim=1)
        found = LipschitzBound().certify(model, images, labels, Threat("linf", 1.0), RNG[:3]).radius
        exact = [exact_linf(model, image, int(label)) for image, label in zip(images, labels, strict=True)]
        assert (found.numpy() <= np.array(exact) + 1e-9).all()
        assert (found > 0).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_norms_of_convolutions_are_bounded_from_above(stride: int) -> None:
    torch.manual_seed(stride)
    weight, value = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.rand(1, 2, 6, 6, dtype=torch.float64)
    layer = Convolution(weight, None, (stride, stride), (1, 1), (1, 1), 1, (2, 6, 6))
    eye = torch.eye(72, dtype=torch.float64).unflatten(1, (2, 6, 6))
    matrix = layer(eye).flatten(1).T
    assert operator_norm(layer, value, "l2") >= float(torch.linalg.matrix_norm(matrix, 2)) - 1e-9
    assert operator_norm(layer, value, "linf") == pytest.approx(float(matrix.abs().sum(dim=1).amax()))
    assert operator_norm(layer, value, "l1") == pytest.approx(float(matrix.abs().sum(dim=0).amax()))
    dense = Dense(matrix, None)
    assert operator_norm(dense, value.flatten(1), "l2") == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))


# --- nearest neighbors


def voting() -> tuple[NeighborClassifier, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU())
    model = NeighborClassifier(SequentialBackbone(layers, (1, 4, 4)), 4, 3, torch.arange(30) % 3, 5, 0.1).eval()
    # References in three tight bundles, so that votes are clear for most images.
    model.gallery.copy_(F.normalize(torch.eye(4)[torch.arange(30) % 3] + 0.05 * torch.randn(30, 4), dim=1))
    return model.requires_grad_(False), torch.rand(30, 1, 4, 4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_proved_vote_is_turned(norm: Norm) -> None:
    model, images = voting()
    labels, proved = model.predict(images), 0
    for eps in (0.001, 0.01, 0.05):
        threat = Threat(norm, eps * {"linf": 1, "l2": 4, "l1": 16}[norm])
        kept = NeighborsBound().certify(model, images, labels, threat, Streams.of(torch.arange(30), 0)).radius > 0
        proved += int(kept.sum())
        for seed in range(100):
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
            size = torch.linalg.vector_norm(noise.flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
            change = noise.sign() if norm == "linf" else noise / size[:, None, None, None]
            changed = (images + threat.radius * change).clamp(0, 1)
            assert (model.predict(changed) == labels)[kept].all()
    assert proved > 10


def test_a_vote_that_is_tied_is_not_proved_and_other_models_are_refused() -> None:
    model, images = voting()
    gallery = F.normalize(torch.randn(1, 4), dim=1).expand(30, -1)
    model.gallery.copy_(gallery)
    labels = model.predict(images)
    assert not NeighborsBound().certify(model, images, labels, Threat("linf", 1e-6), RNG).radius.any()
    plain, image = halfspace(1.0)
    with pytest.raises(NoCertificate, match="no nearest-neighbor model"):
        NeighborsBound().certify(plain, image, torch.tensor([0]), Threat("linf", 0.1), RNG[:1])
