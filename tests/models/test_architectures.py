from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import make
from torch import nn

from robbench.core.contracts import Architecture
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.models._preactivation import PreActivationBlock
from robbench.models.cross_entropy import CrossEntropy
from robbench.models.resnet18 import ResNet18
from robbench.planning.component_spec import choose

REGISTRY = Registry(installed=False)
ASKED = {
    "timm": "timm[name=test_vit]",
    "torchvision": "torchvision[name=squeezenet1_1]",
    "wide-resnet": "wide-resnet[depth=10,widen_factor=1,dropout=0.3]",
}
NAMES = [
    *(ASKED.get(name, name) for name in REGISTRY.entries("architecture")),
    "resnet18[stem=auto]",
    "compact-cnn[width=4]",
    "timm[name=test_resnet]",
    "torchvision[name=mobilenet_v3_small]",
]
LINEAR_BOUNDS = (nn.Sequential, nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten)


def architecture(name: str) -> Architecture:
    made: Architecture = choose(REGISTRY, "architecture", name, "test").component
    return made


def shaped(size: int, channels: int) -> tuple[int, int, int]:
    return channels, size, size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_trains_or_refuses_before(name: str, size: int, channels: int) -> None:
    shape = shaped(size, channels)
    reason = architecture(name).refusal(shape)
    if reason is not None:
        assert len(reason) > 20
        assert size == 8 or "divisible" in reason
        return
    torch.manual_seed(0)
    backbone = architecture(name).build(shape)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    model = CrossEntropy().build(backbone, 7, torch.zeros(0)).to(memory_format=torch.channels_last).train()
    images, labels = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 6, 3])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = CrossEntropy().loss(model, images, labels, None)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert loss.isfinite()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        together = model.eval().embed(images)
        alone = torch.cat([model.embed(image[None]) for image in images])
    assert together.shape == (4, backbone.out_features)
    assert bool((together[0] != together[1]).any())
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_global_generator(name: str) -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(architecture(name).build((3, 32, 32)).state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert any(not torch.equal(made[0][key], made[2][key]) for key in made[0])


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("preact-resnet18", (3, 32, 32), 11_172_170),
        ("resnet18[stem=3x3]", (3, 32, 32), 11_173_962),
        ("resnet18[stem=auto]", (3, 32, 32), 11_173_962),
        ("wide-resnet", (3, 32, 32), 36_479_194),
        ("wide-resnet[depth=34]", (3, 32, 32), 46_160_474),
        ("wide-resnet[depth=16,widen_factor=8]", (3, 32, 32), 10_961_370),
        ("wide-resnet[depth=40,widen_factor=2]", (3, 32, 32), 2_243_546),
        ("cnn-a", (1, 28, 28), 166_406),
        ("cnn-a", (3, 32, 32), 214_918),
        ("wong-large", (1, 28, 28), 1_974_762),
        ("wong-large", (3, 32, 32), 2_466_858),
        # Gowal et al., table 1: 471 K, 1.2 M and 17 M.
        ("ibp-small", (3, 32, 32), 470_918),
        ("ibp-medium", (3, 32, 32), 1_188_906),
        ("ibp-large", (3, 32, 32), 17_190_602),
        ("torchvision[name=mobilenet_v3_small]", (3, 32, 32), 1_528_106),
        ("timm[name=resnet18]", (3, 32, 32), 11_181_642),
    ],
)
def test_parameters_are_as_many_as_published(name: str, shape: tuple[int, int, int], published: int) -> None:
    backbone = architecture(name).build(shape)
    head = (backbone.out_features + 1) * 10
    assert sum(parameter.numel() for parameter in backbone.parameters()) + head == published


@pytest.mark.parametrize("size", [32, 64, 65, 96])
def test_the_stem_follows_the_size_of_the_images(size: int) -> None:
    wanted = "3x3" if size <= 64 else "torchvision"
    states = []
    for stem in ("auto", wanted):
        torch.manual_seed(0)
        states.append(ResNet18(stem=stem).build((3, size, size)).state_dict())  # type: ignore[arg-type]
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert ResNet18().identity() == {"stem": "torchvision"}
    weights, _ = ResNet18(stem="auto").pretrained((3, 32, 32))
    assert weights is None
    preact = architecture("preact-resnet18").build((3, size, size))
    first = next(part for part in preact.modules() if isinstance(part, nn.Conv2d))
    assert first.kernel_size == ((3, 3) if size <= 64 else (7, 7))


@pytest.mark.parametrize(
    ("depth", "nearest"), [(-1, 10), (0, 10), (4, 10), (5, 10), (12, 10), (27, 28), (29, 28), (32, 34), (1001, 1000)]
)
def test_a_depth_that_no_wide_resnet_has_is_refused_with_the_nearest(depth: int, nearest: int) -> None:
    with pytest.raises(RequestError, match=rf"depth = {depth}: .*nearest depth is {nearest}$"):
        architecture(f"wide-resnet[depth={depth}]")
    assert architecture(f"wide-resnet[depth={nearest}]")


@pytest.mark.parametrize("options", ["widen_factor=0", "dropout=1", "dropout=-0.1", "depth=28.5"])
def test_what_else_no_wide_resnet_has_is_refused(options: str) -> None:
    with pytest.raises(RequestError, match=options.partition("=")[0]):
        architecture(f"wide-resnet[{options}]")


def test_a_block_that_changes_nothing_is_the_identity() -> None:
    block, changing = PreActivationBlock(4, 4, 1, 0.0), PreActivationBlock(4, 8, 2, 0.0)
    images = torch.randn(3, 4, 6, 6)
    for one in (block, changing):
        nn.init.zeros_(one.conv2.weight)
    assert torch.equal(block(images), images)
    assert changing.shortcut is not None
    # In training the first activation is what batch statistics make of the images.
    mean, var = (value[:, None, None] for value in (images.mean((0, 2, 3)), images.var((0, 2, 3), correction=0)))
    active = ((images - mean) / (var + changing.bn1.eps).sqrt()).relu()
    torch.testing.assert_close(changing(images), changing.shortcut(active), rtol=1e-4, atol=1e-5)


def test_dropout_stands_between_the_convolutions_in_training_alone() -> None:
    dropped = PreActivationBlock(4, 4, 1, 0.9)
    images = torch.randn(3, 4, 6, 6)
    assert not torch.equal(dropped(images), dropped(images))
    assert torch.equal(dropped.eval()(images), dropped(images))


@pytest.mark.parametrize("name", ["cnn-a", "wong-large", "ibp-small", "ibp-medium", "ibp-large"])
def test_networks_of_certificates_have_layers_that_linear_bounds_pass(name: str) -> None:
    backbone = architecture(name).build((1, 28, 28))
    assert {type(part) for part in backbone.modules()} == {type(backbone), *LINEAR_BOUNDS}


@pytest.mark.parametrize("name", ["cnn-a", "wong-large", "ibp-small", "ibp-medium", "ibp-large"])
def test_networks_of_certificates_refuse_just_what_cannot_be_built(name: str) -> None:
    for size in range(1, 24):
        refused, failed = architecture(name).refusal((1, size, size)) is not None, False
        try:
            architecture(name).build((1, size, size))
        except (RuntimeError, UserWarning):
            failed = True
        assert refused is failed, size


def test_networks_of_certificates_can_be_changed_and_asked_for_again() -> None:
    wanted = {"name": "cnn-a", "channels": [8, 8], "kernels": [3, 4], "strides": [1, 2], "linear": [50, 20]}
    made = choose(REGISTRY, "architecture", wanted, "test")
    again = choose(REGISTRY, "architecture", made.label, "test")
    assert (again.component, again.label) == (made.component, made.label)
    assert again.component.build((1, 8, 8)).out_features == 20
    assert architecture("cnn-a[linear=250]").build((1, 8, 8)).out_features == 250
    one = architecture("cnn-a[channels=4,kernels=3,strides=1,paddings=0]")
    assert one.refusal((1, 3, 3)) is None
    assert one.refusal((1, 2, 2)) == "it needs images of at least 3 × 3"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("channels=8", "kernels = (4, 4): one each for channels = (8,)"),
        ("strides=1", "strides = (1,): one each"),
        ("kernels=0|3", "kernels"),
        ("paddings=-1|0", "paddings"),
        ("linear=0", "linear"),
    ],
)
def test_convolutions_that_are_half_told_are_refused(options: str, part: str) -> None:
    with pytest.raises(RequestError, match=re.escape(part)):
        architecture(f"cnn-a[{options}]")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("torchvision[name=resnet19]", 'torchvision has no classifier "resnet19"; did you mean "resnet18"?'),
        ("timm[name=resnet19]", 'timm has no network "resnet19"; did you mean'),
        ("torchvision[name=alexnet]", "a step of training fails: RuntimeError"),
        ("torchvision", "name one, as in torchvision[name=mobilenet_v2]"),
        ("timm", "name one, as in timm[name=resnet18]"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(name: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as found:
        make(tmp_path, [f'architecture = "{name}"'])
    assert part in str(found.value)
    assert "architecture" in str(found.value)
    assert not (tmp_path / "runs" / "models").exists()


def missing(module: str) -> Callable[..., None]:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(name=module)

    return fail


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robbench.core.extras.importlib.import_module", missing("timm"))
    reason = architecture("timm[name=test_byobnet]").refusal((3, 16, 16))
    assert reason == "the architecture timm needs timm; pip install 'robbench[timm]'"
