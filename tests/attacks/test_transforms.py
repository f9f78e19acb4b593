"""Natural perturbations against torchvision's, image by image."""

from __future__ import annotations

import itertools

import pytest
import torch
from closed_forms import linear, streams
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from robbench.attacks.color_jitter import (
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    jitter,
)
from robbench.attacks.perturbation import Perturbation
from robbench.attacks.pixel_corruption import PixelCorruption, overwrite
from robbench.attacks.rotation import Rotation, rotate
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat

FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.2, 2.5])
TURNS = torch.tensor([-0.5, -0.21, 0.0, 0.05, 0.3, 0.5])


def pictures(count: int, height: int = 9, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, height, width, generator=generator)
    # Grey, black, white and pure colors are where conversions of color divide by zero.
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 0, 2] = 0.5, 0.0, 1.0
    images[:, :, 0, 3:6] = torch.eye(3)
    images[:, :, 0, 6:9] = 1 - torch.eye(3)
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (adjust_brightness, reference.adjust_brightness, FACTORS),
        (adjust_contrast, reference.adjust_contrast, FACTORS),
        (adjust_saturation, reference.adjust_saturation, FACTORS),
        (adjust_hue, reference.adjust_hue, TURNS),
    ],
)
def test_each_adjustment_agrees_with_torchvision(ours, theirs, amounts: Tensor) -> None:  # type: ignore[no-untyped-def]
    images = pictures(len(amounts))
    expected = torch.stack([theirs(image, float(amount)) for image, amount in zip(images, amounts, strict=True)])
    torch.testing.assert_close(ours(images, amounts), expected, rtol=0, atol=1e-5)


def test_jitter_applies_each_image_its_own_order() -> None:
    steps = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = pictures(24)
    generator = torch.Generator().manual_seed(1)
    amounts = torch.cat([0.5 + torch.rand(24, 3, generator=generator), torch.rand(24, 1, generator=generator) - 0.5], 1)
    before = images.clone()
    found = jitter(images, amounts, orders)
    assert torch.equal(images, before)
    for image, amount, order, result in zip(images, amounts, orders, found, strict=True):
        for step in order.tolist():
            image = steps[step](image, float(amount[step]))
        torch.testing.assert_close(result, image, rtol=0, atol=2e-5)


def test_jitter_draws_what_it_says() -> None:
    images = torch.full((400, 3, 2, 2), 0.4, dtype=torch.float64)
    found = ColorJitter(brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0).apply(images, streams(400))
    factors = found[:, 0, 0, 0] / 0.4
    assert 0.5 <= float(factors.min()) < 0.52
    assert 1.48 < float(factors.max()) < 1.5
    assert float(factors.mean()) == pytest.approx(1, abs=0.05)
    # A strength above 1 must not give negative factors.
    wide = ColorJitter(brightness=1.5, contrast=0.0, saturation=0.0, hue=0.0).apply(images, streams(400))
    assert float((wide[:, 0, 0, 0] == 0).double().mean()) < 0.05


def test_strength_zero_changes_nothing_to_the_last_bit() -> None:
    images = pictures(5)
    assert torch.equal(ColorJitter(0.0, 0.0, 0.0, 0.0).apply(images, streams(5)), images)
    assert torch.equal(Rotation(degrees=0.0).apply(images, streams(5)), images)
    assert torch.equal(PixelCorruption(pixels=0).apply(images, streams(5)), images)
    nothing = Perturbation(0.0, 0.0, 0.0, 0.0, degrees=0.0, pixels=0)
    assert torch.equal(nothing.apply(images, streams(5)), images)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fill", [0.0, 0.7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 12)])
def test_rotation_agrees_with_torchvision(interpolation: str, fill: float, height: int, width: int) -> None:
    angles = torch.tensor([-170.3, -33.1, -4.9, 0.37, 3.2, 61.7, 123.4])
    images = pictures(len(angles), height, width)
    found = rotate(images, angles, interpolation, fill)  # type: ignore[arg-type]
    for image, angle, result in zip(images, angles, found, strict=True):
        expected = reference.rotate(image, float(angle), InterpolationMode(interpolation), fill=[fill])
        torch.testing.assert_close(result, expected.clamp(0, 1), rtol=0, atol=2e-5)


def test_a_quarter_turn_is_exact() -> None:
    images = pictures(2, 10, 10).double()
    found = rotate(images, torch.tensor([90.0, 180.0]))
    torch.testing.assert_close(found[0], images[0].rot90(1, dims=(1, 2)))
    torch.testing.assert_close(found[1], images[1].rot90(2, dims=(1, 2)))


def test_rotation_draws_from_its_range() -> None:
    # A white row on black tells the angle by where its right end goes.
    images = torch.zeros(300, 3, 33, 33, dtype=torch.float64)
    images[:, :, 16, :] = 1
    found = Rotation(degrees=20.0).apply(images, streams(300))
    rows = torch.arange(33, dtype=torch.float64)
    column = found[:, 0, :, 30]
    heights = 16 - (column * rows).sum(dim=1) / column.sum(dim=1)
    angles = torch.rad2deg(torch.atan(heights / 14))
    assert float(angles.abs().max()) < 20.5
    assert float(angles.max()) > 18
    assert float(angles.min()) < -18
    assert float(angles.mean().abs()) < 2


def test_overwrite_replaces_exactly_what_is_named() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    positions, channels = torch.tensor([[0, 7], [19, 3]]), torch.tensor([[2, 0], [1, 1]])
    expected = images.clone()
    expected[0, 2, 0, 0] = expected[0, 0, 1, 2] = expected[1, 1, 3, 4] = expected[1, 1, 0, 3] = 0.25
    before = images.clone()
    assert torch.equal(overwrite(images, positions, channels, 0.25), expected)
    assert torch.equal(images, before)


def test_corruption_hits_that_many_different_pixels_in_one_channel_each() -> None:
    images = torch.zeros(200, 3, 6, 6)
    found = PixelCorruption(pixels=10, value=0.5).apply(images, streams(200))
    assert set(found.unique().tolist()) == {0.0, 0.5}
    hits = found > 0
    assert bool((hits.sum(dim=1).flatten(1).sum(dim=1) == 10).all())
    assert int(hits.sum(dim=1).max()) == 1
    shares = hits.sum(dim=(0, 2, 3)) / hits.sum()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.04)
    everywhere = hits.any(dim=1).double().mean(dim=0)
    torch.testing.assert_close(everywhere, torch.full((6, 6), 10 / 36).double(), rtol=0, atol=0.13)


def test_more_pixels_than_there_are_is_an_error() -> None:
    with pytest.raises(RequestError, match="37"):
        PixelCorruption(pixels=37).apply(torch.zeros(1, 3, 6, 6), streams(1))


def test_perturbation_is_the_three_in_a_row() -> None:
    images, rng = pictures(6), streams(6)
    attack = Perturbation(hue=0.1, degrees=30.0, pixels=4, value=0.9)
    expected = images
    for position, part in enumerate(
        (ColorJitter(hue=0.1), Rotation(degrees=30.0), PixelCorruption(pixels=4, value=0.9))
    ):
        expected = part.apply(expected, rng.fork("part", position))
    assert torch.equal(attack.perturb(linear(0, 2), images, torch.zeros(6), Threat("none"), rng), expected)
    assert bool(((expected == 0.9).sum(dim=(1, 2, 3)) >= 4).all())


@pytest.mark.parametrize(
    "wrong", [{"hue": 0.6}, {"brightness": -0.1}, {"degrees": 181.0}, {"pixels": -1}, {"value": 1.5}]
)
def test_strengths_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Perturbation(**wrong)  # type: ignore[arg-type]
