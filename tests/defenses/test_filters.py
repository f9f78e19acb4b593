"""Differentiable filters in front of a model: their values, their gradients, and that attacks pass them."""

from __future__ import annotations

import pytest
import torch
from audits import flags, row
from closed_forms import images_near, largest_gain, linear, margins, numbers, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, median_filter
from subjects import exact, subject
from torch import Tensor

from robbench.attacks._gradients import input_gradient
from robbench.attacks.fgm import FGM
from robbench.core.threat_model import Threat
from robbench.defenses._preprocessing import DifferentiablePreprocessing
from robbench.defenses.gaussian import Gaussian
from robbench.defenses.jpeg import Jpeg
from robbench.defenses.median import Median
from robbench.defenses.total_variation import TotalVariation

EVERY: list[DifferentiablePreprocessing] = [
    *(Median(size=2), Median(), Median(size=5), Gaussian(width=0.5), Gaussian(width=3)),
    *(TotalVariation(), TotalVariation(weight=0.3, steps=3)),
]


def variation(images: Tensor) -> Tensor:
    """The isotropic total variation of each image, summed over channels."""
    down, right = torch.zeros_like(images), torch.zeros_like(images)
    down[:, :, :-1], right[..., :-1] = images.diff(dim=2), images.diff(dim=3)
    return (down**2 + right**2).sqrt().sum(dim=(1, 2, 3))


# --- values


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9])
def test_the_median_filter_is_scipys(size: int) -> None:
    images = torch.rand(4, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    expected = median_filter(images.numpy(), size=(1, 1, size, size), mode="nearest")
    assert torch.equal(Median(size=size).change(images), torch.from_numpy(expected))


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.5])
def test_the_gaussian_filter_is_scipys(width: float) -> None:
    images = torch.rand(4, 3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gaussian_filter(images.numpy(), sigma=(0, 0, width, width), mode="nearest")
    torch.testing.assert_close(Gaussian(width=width).change(images), torch.from_numpy(expected))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.6))
@settings(max_examples=40, deadline=None)
def test_two_pixels_approach_each_other_by_the_weight_or_meet(first: float, second: float, weight: float) -> None:
    images = torch.tensor([first, second], dtype=torch.float64).reshape(1, 1, 1, 2)
    found = TotalVariation(weight=weight, steps=300).change(images)
    step = min(weight, abs(second - first) / 2) * (1 if second > first else -1)
    torch.testing.assert_close(found, images + torch.tensor([step, -step]).reshape(1, 1, 1, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(TotalVariation(weight=weight, steps=300).change(images.mT), found.mT)


@given(st.integers(0, 99), st.floats(0.01, 1), st.integers(1, 50))
@settings(max_examples=8, deadline=None)
def test_total_variation_falls_and_the_objective_with_it(seed: int, weight: float, steps: int) -> None:
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def objective(found: Tensor) -> Tensor:
        return ((found - images) ** 2).sum(dim=(1, 2, 3)) / 2 + weight * variation(found)

    found = TotalVariation(weight=weight, steps=steps).change(images)
    least = TotalVariation(weight=weight, steps=500).change(images)
    assert bool((variation(found) < variation(images)).all())
    assert bool((objective(least) <= objective(found) + 1e-4).all())
    assert bool((objective(least) <= objective(least + 0.05 * numbers(seed, *images.shape)) + 1e-4).all())
    torch.testing.assert_close(found.mean(dim=(2, 3)), images.mean(dim=(2, 3)))


def test_without_weight_images_stay_and_flat_ones_always_do() -> None:
    images = images_near(0.5, 0.5, 3)
    assert torch.equal(TotalVariation(weight=0).change(images), images)
    flat = torch.full((2, 3, 5, 4), 0.3, dtype=torch.float64)
    for defense in EVERY:
        torch.testing.assert_close(defense.change(flat), flat)


@pytest.mark.parametrize("defense", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_keep_shape_type_and_range_whatever_the_batch(
    defense: DifferentiablePreprocessing, dtype: torch.dtype
) -> None:
    images = torch.rand(5, 3, 6, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = defense.change(images)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert bool(((found >= -1e-6) & (found <= 1 + 1e-6)).all())
    alone = torch.cat([defense.change(image[None]) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(alone, found)
    assert defense.change(images[:0]).shape == images[:0].shape
    one = torch.rand(1, 1, 1, 1, dtype=dtype)
    torch.testing.assert_close(defense.change(one), one)


# --- gradients


@pytest.mark.parametrize("defense", EVERY, ids=str)
def test_gradients_are_those_of_finite_differences(defense: DifferentiablePreprocessing) -> None:
    images = torch.rand(2, 2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(defense.change, images.requires_grad_(), eps=1e-7, atol=1e-4)
    assert defense.gradients == "exact"


@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_gradients_are_numbers_where_nothing_varies(weight: float) -> None:
    flat = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    for defense in (TotalVariation(weight=weight), Median(), Gaussian()):
        gradient = input_gradient(lambda x, change=defense.change: change(x).sum(), flat)  # type: ignore[misc]
        assert bool(gradient.isfinite().all())
        assert float(gradient.sum()) == pytest.approx(75)


def test_one_step_is_the_best_attack_on_a_linear_model_behind_a_linear_filter() -> None:
    model, images, eps = linear(3, 2), images_near(0.5, 0.05, 16), 0.3
    wrapped = Gaussian().wrap(model)
    labels = wrapped.predict(images)
    blur = torch.autograd.functional.jacobian(lambda x: Gaussian().change(x).flatten(), images[:1]).reshape(48, 48)
    slopes = (model.weight[1 - labels] - model.weight[labels]) @ blur
    attacked = FGM().perturb(wrapped, images, labels, Threat("linf", eps), streams(16))
    gained = margins(wrapped, images, labels) - margins(wrapped, attacked, labels)
    torch.testing.assert_close(gained, largest_gain(slopes, images, "linf", eps))


# --- the audit

CHAINS = ("fgsm@0.05", "strong[steps=24]@0.05", "square[queries=300]@0.05", "uniform-noise@0.05")


@pytest.mark.parametrize("defense", [Median(), Median(size=2), Gaussian(), TotalVariation()], ids=str)
def test_attacks_pass_and_the_audit_finds_nothing(defense: DifferentiablePreprocessing) -> None:
    cells = row(subject(defense.wrap(exact(4)), wrong=0), *CHAINS)
    assert flags(cells) == {}
    assert cells[2][1].robust.mean() < 0.9


@pytest.mark.parametrize("defense", [Median(), Gaussian(), TotalVariation()], ids=str)
def test_the_same_filter_without_a_gradient_is_found_out(defense: DifferentiablePreprocessing) -> None:
    class Cut(Jpeg):
        def change(self, images: Tensor) -> Tensor:
            return defense.change(images)

    cells = row(subject(Cut(straight_through=False).wrap(exact(4)), wrong=0), *CHAINS, traits=("defense-in-the-way",))
    assert {"zero-gradient", "defense-in-the-way"} <= flags(cells).keys()
