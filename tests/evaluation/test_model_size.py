from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from external_networks import PROGRAMS, SHAPE, load, network
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import carried_out, make
from torch import Tensor, nn

from robbench.core.contracts import Classifier
from robbench.core.registry import Registry
from robbench.evaluation.model_size import ModelSize, model_size
from robbench.models._external.loading import as_external
from robbench.models.cross_entropy import LogitClassifier
from robbench.planning.component_spec import choose

REGISTRY = Registry(installed=False)


def size_of(name: str, shape: tuple[int, int, int], classes: int = 10) -> ModelSize:
    """The size of an untrained classifier, without computing anything."""
    backbone = choose(REGISTRY, "architecture", name, "test").component.build(shape)
    return model_size(LogitClassifier(backbone, classes).eval().to("meta"), shape, "meta")


def seen(network: Any, shape: tuple[int, int, int] = SHAPE, classes: int | None = None) -> ModelSize:
    return model_size(as_external(network, shape, classes).model, shape, "cpu")


@pytest.mark.parametrize(
    ("name", "shape", "by_hand"),
    [
        ("compact-cnn", (3, 32, 32), 16 * 256 * 27 + 32 * 64 * 144 + 64 * 16 * 288 + 1024 * 128 + 128 * 10),
        ("small-cnn", (1, 28, 28), 6 * 576 * 25 + 16 * 64 * 150 + 256 * 120 + 120 * 84 + 84 * 10),
        ("cnn-a", (1, 28, 28), 16 * 196 * 16 + 32 * 49 * 256 + 1568 * 100 + 100 * 10),
        ("cnn-a", (3, 32, 32), 16 * 256 * 48 + 32 * 64 * 256 + 2048 * 100 + 100 * 10),
        ("ibp-small", (3, 32, 32), 16 * 225 * 48 + 32 * 144 * 256 + 4608 * 100 + 100 * 10),
    ],
)
def test_multiply_adds_are_those_of_the_closed_form(name: str, shape: tuple[int, int, int], by_hand: int) -> None:
    assert size_of(name, shape).multiply_adds == by_hand


@pytest.mark.parametrize(
    ("name", "side", "parameters", "multiply_adds"),
    [
        ("preact-resnet18", 32, "11.2", "0.56"),
        ("resnet18[stem=auto]", 32, "11.2", "0.56"),
        ("resnet18", 224, "11.2", "1.81"),
        ("wide-resnet", 32, "36.5", "5.24"),
        ("torchvision[name=mobilenet_v2]", 224, "2.24", "0.30"),
    ],
)
def test_sizes_are_the_published_ones(name: str, side: int, parameters: str, multiply_adds: str) -> None:
    found = size_of(name, (3, side, side))
    assert f"{found.parameters / 1e6:.3g}" == parameters
    assert f"{found.multiply_adds / 1e9:.2f}" == multiply_adds


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 6),
    out=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    grouped=st.booleans(),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    bias=st.booleans(),
)
def test_layers_are_counted_by_their_formula(
    channels: int, out: int, kernel: int, stride: int, grouped: bool, size: tuple[int, int], bias: bool
) -> None:
    groups = channels if grouped else 1
    conv = nn.Conv2d(channels, out * groups, kernel, stride, groups=groups, bias=bias)
    places = math.prod((side - kernel) // stride + 1 for side in size)
    layers = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(out * groups * places, 3, bias=bias))
    found = seen(layers, (channels, *size))
    assert found.multiply_adds == out * groups * places * (channels // groups * kernel**2 + 3)
    assert found.parameters == sum(parameter.numel() for parameter in layers.parameters())


class Attentive(nn.Module):
    """Eight tokens of sixteen features from SHAPE, attended to; fused where torch fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1)[:, :128].reshape(-1, 8, 16)
        found: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1)
        return found


def test_attention_is_counted_however_it_is_fused() -> None:
    tokens, width = 8, 16
    wanted = 4 * tokens * width**2 + 2 * tokens**2 * width
    fast = torch.backends.mha.get_fastpath_enabled()
    assert seen(Attentive().eval()).multiply_adds == wanted
    assert torch.backends.mha.get_fastpath_enabled() is fast


OURS = (4 * 49 * 27 + 16 * 5, sum(parameter.numel() for parameter in network().parameters()))


def test_a_function_around_a_network_shows_its_work_and_no_parameters() -> None:
    net = network().eval()
    assert seen(net) == ModelSize(OURS[1], OURS[0])
    assert seen(lambda images: net(images)) == ModelSize(0, OURS[0])
    assert seen(lambda images: (images.mean(dim=(1, 2, 3)) > 0.5).long(), classes=2) == ModelSize(0, 0)


@pytest.mark.filterwarnings("ignore")
def test_exported_networks_are_counted_like_the_ones_they_came_from(tmp_path: Path) -> None:
    net, given = network().eval(), torch.rand(3, *SHAPE)
    torch.jit.trace(net, given).save(str(tmp_path / "net.pt"))
    files = ["net.pt"]
    if PROGRAMS:
        # Of a fixed batch of three, of which two are filled up.
        torch.export.save(torch.export.export(net, (given,)), tmp_path / "net.pt2")
        files.append("net.pt2")
    for file in files:
        assert model_size(load(tmp_path, source=file).model, SHAPE, "cpu").multiply_adds == OURS[0], file


class Drawing(LogitClassifier):
    """Counts how often it is asked, and draws from its own generator."""

    asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(images) + torch.rand(1)


class Voting(Classifier):
    """The mean of some answers of a classifier."""

    def __init__(self, inner: Classifier, votes: int) -> None:
        super().__init__()
        self.inner, self.votes, self.num_classes = inner, votes, inner.num_classes

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.inner(images) for _ in range(self.votes)]).mean(dim=0)

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)


def plain(kind: type[LogitClassifier] = LogitClassifier) -> LogitClassifier:
    backbone = choose(REGISTRY, "architecture", "compact-cnn[width=2]", "test").component.build((1, 8, 8))
    return kind(backbone, 3).eval()


def test_what_stands_in_front_is_counted_with_it() -> None:
    one = model_size(plain(), (1, 8, 8), "cpu")
    assert model_size(Voting(plain(), 7), (1, 8, 8), "cpu") == ModelSize(one.parameters, 7 * one.multiply_adds)


def test_a_model_does_not_notice() -> None:
    model, state = plain(Drawing), torch.get_rng_state()
    assert model_size(model, (1, 8, 8), "cpu").multiply_adds
    assert model.asked == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


class Failing(LogitClassifier):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        raise RuntimeError("no")


class Single(LogitClassifier):
    def __deepcopy__(self, memo: object) -> Single:
        raise TypeError("there can be only one")


@pytest.mark.parametrize("kind", [Failing, Single])
def test_work_that_cannot_be_seen_whole_is_not_shown(kind: type[LogitClassifier]) -> None:
    found = model_size(plain(kind), (1, 8, 8), "cpu")
    assert found == ModelSize(sum(parameter.numel() for parameter in plain().parameters()), 0)


def test_records_of_trained_models_and_of_others_tell_their_size(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))\n"
    )
    models = ['architecture = "compact-cnn[width=2]"\ndefense = "bit-depth"', 'external = "net.py:make"']
    found = carried_out(make(tmp_path, models, ["clean", "fgsm@0.1"], "epochs = 1"))
    sizes = {(record.spec.model.external is not None, record.parameters, record.multiply_adds) for record, _ in found}
    ours = size_of("compact-cnn[width=2]", (3, 32, 32), 3)
    assert sizes == {(False, *ours), (True, 3073 * 3, 3072 * 3)}
