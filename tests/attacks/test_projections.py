"""Balls: projections against an independent solution, starts against the uniform law, steps against linear programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import assert_allowed, images_near, norms, numbers, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from robbench.attacks._gradients import steepest_step
from robbench.attacks._projections import add, project, uniform_in_ball
from robbench.core.threat_model import Norm, Threat

BALLS: list[Norm] = ["linf", "l2", "l1"]
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float32, torch.float64])
radii = st.floats(0, 20)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(BALLS), radii, st.floats(1e-6, 50), dtypes)
def test_what_is_projected_lies_in_ball_and_box(
    seed: int, norm: Norm, eps: float, scale: float, dtype: torch.dtype
) -> None:
    images = images_near(0.5, 0.5, 3, seed).to(dtype)
    change = (scale * numbers(seed + 1, 3, 3, 4, 4)).to(dtype)
    assert_allowed(images, project(images, change, norm, eps), Threat(norm, eps))


@settings(max_examples=60, deadline=None)
@given(seeds, dtypes, st.floats(1e-9, 2))
def test_adding_never_moves_a_value_further_than_asked(seed: int, dtype: torch.dtype, scale: float) -> None:
    images = images_near(0.5, 0.5, 4, seed).to(dtype)
    change = (scale * numbers(seed + 1, 4, 3, 4, 4)).to(dtype)
    moved = add(images, change)
    assert bool(((moved.double() - images.double()).abs() <= change.double().abs()).all())
    near = torch.finfo(dtype).eps
    torch.testing.assert_close(moved, (images + change).clamp(0, 1), rtol=0, atol=near)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(1e-6, 2))
def test_adding_takes_the_next_number_where_rounding_went_too_far(seed: int, scale: float) -> None:
    images, change = images_near(0.5, 0.5, 4, seed).float(), (scale * numbers(seed + 1, 4, 3, 4, 4)).float()
    moved, exact = images + change, images.double() + change.double()
    too_far = (moved.double() - exact) * change.double() > 0
    expected = torch.where(too_far, torch.nextafter(moved, images), moved).clamp(0, 1)
    assert torch.equal(add(images, change), expected)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.01, 5), st.sampled_from([0.0, 0.01, 1.0]))
def test_l1_projection_solves_its_optimality_condition(seed: int, eps: float, scale: float) -> None:
    center = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    change = scale * numbers(seed, 1, 3, 4, 4).clamp(-0.4, 0.4)
    found = (project(center, change, "l1", eps) - center).flatten().numpy()
    sizes = change.abs().flatten().numpy()

    def over(threshold: float) -> float:
        return float(np.clip(sizes - threshold, 0, None).sum()) - eps

    threshold = brentq(over, 0, sizes.max(), xtol=1e-15) if over(0) > 0 else 0.0
    expected = np.sign(change.flatten().numpy()) * np.clip(sizes - threshold, 0, None)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("norm", BALLS)
def test_a_change_inside_the_ball_is_left_alone_and_one_outside_ends_on_its_surface(norm: Norm) -> None:
    images = torch.full((4, 3, 4, 4), 0.5, dtype=torch.float64)
    change = 0.1 * numbers(0, 4, 3, 4, 4).clamp(-3, 3)
    sizes = norms(change, norm)
    inside = project(images, change, norm, float(sizes.max()))
    torch.testing.assert_close(inside - images, change)
    eps = float(sizes.min()) / 2
    outside = project(images, change, norm, eps) - images
    torch.testing.assert_close(norms(outside, norm), torch.full((4,), eps, dtype=torch.float64))


@pytest.mark.parametrize("norm", BALLS)
def test_starts_are_uniform_in_the_ball(norm: Norm) -> None:
    size, eps = 12, 0.7
    like = torch.zeros(6000, 3, 2, 2, dtype=torch.float64)
    drawn = uniform_in_ball(streams(6000), "start", like, norm, eps)
    # The norm of a uniform point, to the power of the dimension, is uniform in [0, 1].
    levels = (norms(drawn, norm) / eps) ** size
    assert float(levels.max()) <= 1
    expected = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(levels.quantile(expected), expected, rtol=0, atol=0.03)
    flat = drawn.flatten(1)
    assert float(flat.mean(dim=0).abs().max()) < 0.03 * eps
    spread = flat.square().mean(dim=0)
    assert float(spread.max() / spread.min()) < 1.25
    assert not torch.equal(drawn, uniform_in_ball(streams(6000), "again", like, norm, eps))


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.05, 4), st.sampled_from(["linf", "l1"]))
def test_steepest_steps_solve_the_linear_program(seed: int, eps: float, norm: Norm) -> None:
    image = images_near(0.5, 0.5, 1, seed)[:, :, :2, :1]
    slope = numbers(seed + 1, 1, 3, 2, 1)
    step = project(image, steepest_step(image, slope, norm, eps), norm, eps) - image
    flat, x = slope.flatten().numpy(), image.flatten().numpy()
    low, high = -x, 1 - x
    if norm == "linf":
        best = linprog(-flat, bounds=list(zip(np.maximum(low, -eps), np.minimum(high, eps), strict=True)))
    else:
        bounds = list(zip(np.zeros(12), np.concatenate([high, -low]), strict=True))
        best = linprog(np.concatenate([-flat, flat]), A_ub=np.ones((1, 12)), b_ub=[eps], bounds=bounds)
    assert float((slope * step).sum()) == pytest.approx(-best.fun, abs=1e-8)


@pytest.mark.parametrize("norm", ["l0", "none"])
def test_norms_without_a_ball_are_refused(norm: Norm) -> None:
    images = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=norm):
        project(images, images, norm, 1.0)
    with pytest.raises(ValueError, match=norm):
        steepest_step(images, images, norm, 1.0)
    with pytest.raises(ValueError, match=norm):
        uniform_in_ball(streams(1), "start", images, norm, 1.0)
