from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from robbench.models._convolution import Conv2d, with_quick_convolutions
from robbench.models.resnet18 import ResNet18


@settings(deadline=None, max_examples=150)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_it_is_torchs_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    dilation: int,
    groups: int,
    bias: bool,
    channels_last: bool,
) -> None:
    assume(all(dilation * (k - 1) + 1 <= s + 2 * p for k, s, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias, dtype=torch.float64)
    ours = Conv2d.of(copy.deepcopy(theirs))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=layout)
    results = []
    for layer in (theirs, ours):
        given_images = images.clone().requires_grad_()
        made = layer(given_images)
        (made**3).sum().backward()
        results.append([made.detach(), given_images.grad, *(parameter.grad for parameter in layer.parameters())])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "windows"),
    [
        (3, 1, 1, 1, [slice(1, 2)]),
        (3, 2, 1, 2, [slice(1, 3)]),
        (3, 1, 1, 2, [slice(1, 3), slice(0, 2)]),
        (3, 1, 1, 3, []),
        (1, 2, 0, 2, []),
        (3, 1, 0, 3, [slice(0, 3)]),
        (7, 2, 3, 32, []),
    ],
)
def test_a_product_stands_where_every_output_sees_the_whole_input(
    kernel: int, stride: int, padding: int, size: int, windows: list[slice]
) -> None:
    assert Conv2d(1, 1, kernel, stride, padding)._windows(0, size) == windows


@pytest.mark.parametrize(("size", "images", "product"), [(1, 2, True), (2, 2, True), (2, 1, False), (3, 2, False)])
def test_where_the_product_is_taken(size: int, images: int, product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Conv2d(2, 3, 3, padding=1)
    given_images = torch.rand(images, 2, size, size)
    calls: list[Tensor] = []
    theirs = nn.Conv2d.forward

    def spied(self: nn.Conv2d, seen: Tensor) -> Tensor:
        calls.append(seen)
        return theirs(self, seen)

    monkeypatch.setattr(nn.Conv2d, "forward", spied)
    layer(given_images)
    assert bool(calls) is not product


def test_a_single_image_without_a_batch_is_taken_as_torch_takes_it() -> None:
    layer = Conv2d(2, 3, 3, padding=1)
    image = torch.rand(2, 2, 2)
    torch.testing.assert_close(layer(image), nn.Conv2d.forward(layer, image))


def test_autocast_gives_the_type_and_nearly_the_values_of_torchs() -> None:
    layer = Conv2d(8, 4, 3, padding=1)
    images = torch.rand(3, 8, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = layer(images), nn.Conv2d.forward(layer, images)
    assert found.dtype == wanted.dtype == torch.bfloat16
    # Sums of terms below 1 that cancel are as coarse as their terms: bfloat16 has eight bits.
    torch.testing.assert_close(found, wanted, atol=2**-7, rtol=2**-7)


def test_second_derivatives_are_right() -> None:
    layer = Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    images = torch.rand(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda seen: layer(seen) ** 3, images)


def test_a_network_stays_the_same_function_of_the_same_parameters() -> None:
    theirs = resnet18(num_classes=5).double()
    ours = with_quick_convolutions(copy.deepcopy(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    convolutions = [module for module in ours.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 20
    assert {type(module) for module in convolutions} == {Conv2d}
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for network in (theirs, ours):
        network(images).square().sum().backward()
    torch.testing.assert_close(ours(images), theirs(images))
    for wanted, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_the_registered_resnet_is_made_of_them() -> None:
    network = ResNet18().build((3, 32, 32))
    assert {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)} == {Conv2d}


def test_what_pads_otherwise_is_left_as_it_is() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    assert {type(layer) for layer in with_quick_convolutions(layers).children()} == {nn.Conv2d}


def test_parameters_are_shared_and_nothing_is_drawn() -> None:
    theirs = nn.Conv2d(2, 3, 3, padding=1)
    state = torch.get_rng_state()
    ours = Conv2d.of(theirs)
    assert ours.weight is theirs.weight
    assert ours.bias is theirs.bias
    assert torch.equal(torch.get_rng_state(), state)
