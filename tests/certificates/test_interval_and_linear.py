from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from certified import Plain, exact_linf, radii, tiny_relu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robbench.certificates._bounds import propagate
from robbench.certificates._network import Network
from robbench.certificates.crown import LinearBounds
from robbench.certificates.ibp import IntervalBounds
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.models._external.classifier import ExternalClassifier
from robbench.models._external.normalization import Normalization
from robbench.models.compact_cnn import CompactCNN
from robbench.models.cross_entropy import LogitClassifier
from robbench.models.resnet18 import ResNet18
from robbench.models.small_cnn import SmallCNN

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def margins(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat, *, linear: bool) -> Tensor:
    with torch.no_grad():
        bounds = propagate(Network.of(model, images.shape[1:]), images, threat, linear=linear)
        return bounds.margins(labels, linear=linear)


def bases() -> Tensor:
    return 0.3 + 0.4 * torch.rand(7, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- closed forms


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("linear", [False, True])
def test_linear_models_are_bounded_exactly(norm: Norm, linear: bool) -> None:
    torch.manual_seed(0)
    head, images = nn.Linear(18, 4, dtype=torch.float64), bases()
    scores = head(images.flatten(1))
    labels = scores.argmax(dim=1)
    slopes = head.weight[labels][:, None] - head.weight[None]
    # Within 0.05 no pixel reaches 0 or 1.
    exact = scores.gather(1, labels[:, None]) - scores - 0.05 * torch.linalg.vector_norm(slopes, DUAL[norm], dim=2)
    found = margins(nn.Sequential(nn.Flatten(), head), images, labels, Threat(norm, 0.05), linear=linear)
    others = F.one_hot(labels, 4) == 0
    torch.testing.assert_close(found[others], exact[others].detach())


def test_the_box_counts_in_linf() -> None:
    head = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
        assert head.bias is not None
        head.bias.copy_(torch.tensor([1.0, 0.0]))
    image = torch.tensor([[[[0.1, 0.9, 0.5]]]], dtype=torch.float64)
    # 0.1 can fall by 0.1 alone, and 0.9 rise by as much.
    value = 1 + 0.1 - 1.8 + 0.25 - (1 * 0.1 + 2 * 0.1 + 0.5 * 0.3)
    found = margins(nn.Sequential(nn.Flatten(), head), image, torch.tensor([0]), Threat("linf", 0.3), linear=True)
    assert float(found[0, 1]) == pytest.approx(value)


@pytest.mark.parametrize("norm", NORMS)
def test_normalization_and_affine_chains_are_exact(norm: Norm) -> None:
    """Normalization, a convolution, batch norm, average pooling and a head are one linear model."""
    torch.manual_seed(0)
    norm2d = nn.BatchNorm2d(5, dtype=torch.float64)
    norm2d.running_mean, norm2d.running_var = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    parts = [nn.Conv2d(2, 5, 2, padding=1, dtype=torch.float64), norm2d, nn.AvgPool2d(2), nn.Flatten()]
    network = nn.Sequential(*parts, nn.Linear(20, 3, dtype=torch.float64)).eval()
    model = ExternalClassifier(network, 3, Normalization((0.4, 0.5), (0.2, 0.3)))
    for buffer in (model.mean, model.std):
        buffer.data = buffer.data.double()
    images = bases().requires_grad_()
    scores = model(images)
    labels = scores.argmax(dim=1).detach()
    leads = scores.gather(1, labels[:, None]) - scores
    each = [torch.autograd.grad(leads[:, k].sum(), images, retain_graph=True)[0] for k in range(3)]
    slopes = torch.stack(each, dim=1).flatten(2)
    exact = scores.gather(1, labels[:, None]) - scores - 0.05 * torch.linalg.vector_norm(slopes, DUAL[norm], dim=2)
    others = F.one_hot(labels, 3) == 0
    found = margins(model, images.detach(), labels, Threat(norm, 0.05), linear=True)
    torch.testing.assert_close(found[others], exact[others].detach())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_proof_reaches_beyond_the_exact_distance(seed: int, layers: int) -> None:
    model = tiny_relu(seed, inputs=2, hidden=3, layers=layers)
    images = torch.rand(4, 1, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = model(images).argmax(dim=1)
    for image, label in zip(images, labels, strict=True):
        exact = exact_linf(model, image, int(label))
        for share in (0.2, 0.6, 0.9, 0.999, 1.001, 1.2):
            eps = min(share * exact, 1.0)
            threat = Threat("linf", eps)
            both = [margins(model, image[None], label[None], threat, linear=linear) for linear in (False, True)]
            assert (both[1] >= both[0] - 1e-12).all()
            if eps > exact:
                assert both[1].min() <= 1e-9
                assert radii(model, image[None], threat)[0] == 0
    # One hidden layer: close to exact for small distances, so that the test is not passed by proving nothing.
    assert (radii(model, images, Threat("linf", 1e-4)) > 0).any()


# --- networks


class Residual(nn.Module):
    """A block with a shortcut, as functions and as modules."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images + self.second(torch.relu(self.norm(self.first(images)))))


class Dense(nn.Module):
    """Concatenation, a functional pool, reshaping by the size of the batch, and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1, groups=1)

    def forward(self, images: Tensor) -> Tensor:
        joined = torch.cat([images, self.layer(images).relu()], dim=1) * 0.5 - 0.1
        pooled = F.max_pool2d(joined, 3, stride=2, padding=1)
        return pooled.view(pooled.size(0), -1)


def networks() -> dict[str, tuple[Plain, tuple[int, int, int]]]:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(6)
    norm.running_mean, norm.running_var = 0.1 * torch.randn(6), 0.5 + torch.rand(6)
    stem = [nn.Conv2d(3, 6, 3, stride=2, bias=False), norm, nn.ReLU(), Residual(6)]
    pooled = [nn.Conv2d(1, 4, 3, dilation=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()]
    same = [nn.Conv2d(1, 3, 3, padding="same"), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(1), nn.Linear(75, 8), nn.ReLU()]
    made: dict[str, tuple[list[nn.Module], tuple[int, int, int]]] = {
        "residual": ([*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)], (3, 9, 9)),
        "max pool": ([*pooled, nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(16, 3)], (1, 10, 10)),
        "dense": ([Dense(), nn.Linear(7 * 16, 5)], (3, 8, 8)),
        "same padding": ([*same, nn.Linear(8, 3)], (1, 5, 5)),
    }
    return {name: (Plain(nn.Sequential(*layers), 0), shape) for name, (layers, shape) in made.items()}


def five(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(5, *shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["residual", "max pool", "dense", "same padding"])
def test_nothing_that_is_tried_lies_outside_the_bounds(name: str, norm: Norm) -> None:
    model, shape = networks()[name]
    images = five(shape)
    threat = Threat(norm, {"linf": 0.05, "l2": 0.5, "l1": 2.0}[norm])
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
        network = Network.of(model, shape)
        for linear in (False, True):
            bounds = propagate(network, images.double(), threat, linear=linear)
            least = bounds.margins(labels, linear=linear)
            for seed in range(20):
                tried = _inside(images, threat, seed)
                scores = model(tried).double()
                assert (scores >= bounds.intervals[-1].lower - 1e-4).all()
                assert (scores <= bounds.intervals[-1].upper + 1e-4).all()
                lead = (scores.gather(1, labels[:, None]) - scores).scatter(1, labels[:, None], torch.inf)
                assert (lead >= least - 1e-4).all()


def _inside(images: Tensor, threat: Threat, seed: int) -> Tensor:
    """Points of the ball on its border, as far as [0, 1] lets them: corners, directions, and single pixels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).flatten(1)
    if threat.norm == "linf":
        change = noise.sign() * threat.radius
    elif threat.norm == "l2":
        change = noise / noise.norm(dim=1, keepdim=True) * threat.radius
    else:
        place = noise.abs().argmax(dim=1, keepdim=True)
        change = torch.zeros_like(noise).scatter(1, place, noise.gather(1, place).sign() * threat.radius)
    return (images + change.view_as(images)).clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_break_no_proof(norm: Norm) -> None:
    """Ascent on every margin, projected onto the ball, from many starts."""
    model, shape = networks()["residual"]
    images = five(shape).repeat(4, 1, 1, 1)
    labels = model(images).argmax(dim=1)
    for eps in (0.003, 0.01, 0.03):
        threat = Threat(norm, {"linf": eps, "l2": 8 * eps, "l1": 60 * eps}[norm])
        kept = radii(model, images, threat) > 0
        for start in range(3):
            changed = _inside(images, threat, start)
            for _ in range(10):
                changed = changed.detach().requires_grad_()
                scores = model(changed)
                rest = scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
                (slope,) = torch.autograd.grad((rest - scores.gather(1, labels[:, None])[:, 0]).sum(), changed)
                step = (
                    slope.sign()
                    if norm == "linf"
                    else slope / slope.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)
                )
                change = (changed + threat.radius * step - images).detach().flatten(1)
                size = torch.linalg.vector_norm(change, {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
                change = change * (threat.radius / size.clamp_min(threat.radius))[:, None]
                changed = (images + change.view_as(images)).clamp(0, 1)
            assert (model(changed).argmax(dim=1) == labels)[kept].all()


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [(SmallCNN(), (1, 16, 16)), (CompactCNN(4), (3, 16, 16)), (ResNet18("3x3"), (3, 8, 8)), (ResNet18(), (1, 8, 8))],
)
def test_the_layers_of_built_in_models_are_known(architecture: SmallCNN, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = LogitClassifier(architecture.build(shape), 10).eval().requires_grad_(False)
    images = torch.rand(3, *shape)
    scores = Network.of(model, shape)(images.double()).values[-1]
    torch.testing.assert_close(scores.float(), model(images), rtol=1e-3, atol=1e-4)
    assert (radii(model, images, Threat("linf", 1e-7), linear=False) >= 0).all()


# --- properties


@given(seed=st.integers(0, 10_000), eps=st.floats(0.001, 0.5), more=st.floats(1.0, 3.0), norm=st.sampled_from(NORMS))
@settings(max_examples=40, deadline=None)
def test_intervals_prove_no_more_of_larger_balls(seed: int, eps: float, more: float, norm: Norm) -> None:
    model = tiny_relu(seed, inputs=3)
    images = torch.rand(3, 1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = model(images).argmax(dim=1)
    small, large = (margins(model, images, labels, Threat(norm, size), linear=False) for size in (eps, eps * more))
    assert (small >= large - 1e-12).all()


@given(seed=st.integers(0, 10_000), eps=st.floats(0.001, 0.5), norm=st.sampled_from(NORMS))
@settings(max_examples=40, deadline=None)
def test_linear_bounds_are_never_looser_and_never_wrong(seed: int, eps: float, norm: Norm) -> None:
    model = tiny_relu(seed, inputs=3, layers=2)
    images = torch.rand(3, 1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = model(images).argmax(dim=1)
    threat = Threat(norm, eps)
    by = [radii(model, images, threat, linear=linear) > 0 for linear in (False, True)]
    assert (by[1] | ~by[0]).all()
    least = margins(model, images, labels, threat, linear=True)
    for trial in range(20):
        scores = model(_inside(images.float(), threat, trial).double())
        lead = (scores.gather(1, labels[:, None]) - scores).scatter(1, labels[:, None], torch.inf)
        assert (lead >= least - 1e-6).all()


@pytest.mark.parametrize("method", [IntervalBounds(), LinearBounds()])
def test_batches_change_nothing(method: IntervalBounds | LinearBounds) -> None:
    model, shape = networks()["residual"]
    images = torch.rand(14, *shape, generator=torch.Generator().manual_seed(9))
    labels, threat = model(images).argmax(dim=1), Threat("linf", 0.004)

    def radius(part: Tensor) -> Tensor:
        return method.certify(model, images[part], labels[part], threat, Streams.of(part, 0)).radius

    index = torch.arange(14)
    whole = radius(index)
    assert int((whole > 0).sum()) > 0
    for size in (1, 7):
        torch.testing.assert_close(torch.cat([radius(part) for part in index.split(size)]), whole)
    torch.testing.assert_close(radius(index.flip(0)).flip(0), whole)


# --- rounding


def test_a_margin_within_rounding_is_no_proof() -> None:
    """Weights of 1e4 that cancel: float32 scores are off by far more than the exact margin of 1e-4."""
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e4, -1e4, 1e4, -1e4], [0, 0, 0, 0]]))
        assert head.bias is not None
        head.bias.copy_(torch.tensor([1e-4, 0.0]))
    model = Plain(nn.Sequential(nn.Flatten(), head), 2)
    image = torch.full((1, 1, 2, 2), 0.7)
    assert radii(model, image, Threat("linf", 0.0)) == 0
    exact = propagate(Network.of(model, (1, 2, 2)), image.double(), Threat("linf", 0.0)).margins(
        torch.tensor([0]), linear=True
    )
    assert float(exact[0, 1]) == pytest.approx(1e-4, rel=1e-3)


def test_bounds_include_what_float32_makes_of_the_scores() -> None:
    model, shape = networks()["residual"]
    images = torch.rand(50, *shape)
    exact = Network.of(model, shape)(images.double()).values[-1]
    found = propagate(Network.of(model, shape), images.double(), Threat("linf", 0.0), unit=2.0**-24).intervals[-1]
    apart = (model(images).double() - exact).abs()
    assert float(apart.max()) > 0
    assert (apart <= (found.upper - exact)).all()
    assert float((found.upper - exact).max()) < 1e-3


# --- training


def test_interval_margins_of_a_network_in_training_have_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).train()
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    layers = Network.of(network, (1, 8, 8))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    for linear in (False, True):
        bounds = propagate(layers, images, Threat("linf", 0.02))
        torch.testing.assert_close(bounds.network.values[-1], copy.deepcopy(network)(images))
        worst = -bounds.margins(labels, linear=linear)
        loss = F.cross_entropy(worst.masked_fill(worst.isinf(), 0), labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients[-2:])
        assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(norm.running_mean, before)
