"""Noise optimization on a logistic unit, where the best noise is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from closed_forms import Linear, images_near, norms, numbers, streams
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from robbench.attacks.noise_optimization import NoiseOptimization
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat

TARGETED = Threat("l1", None, targeted=True)
STEEPEST = 7


def logistic_unit(steepest: float, bias: float, seed: int = 0) -> Linear:
    """Class 1 has a logit of its own, class 0 none; one weight is larger than all others."""
    weight = numbers(seed, 48).clamp(-0.8, 0.8)
    weight[STEEPEST] = steepest
    return Linear(torch.stack([torch.zeros(48).double(), weight]), torch.tensor([0.0, bias]).double()).eval()


def best_noise(model: Linear, images: Tensor, price: float) -> Tensor:
    """Truth 3: zero, or one value moved by (log(a / C - 1) - m') / a; shape ``(N, 48)``."""
    signed = model(images)[:, 1]
    a = model.weight[1].abs().amax()
    noise = torch.zeros(len(images), 48, dtype=torch.float64)
    pays = price < a * torch.sigmoid(-signed)
    if price < a:
        amount = (math.log(a / price - 1) - signed) / a
        noise[pays, STEEPEST] = amount[pays] * model.weight[1, STEEPEST].sign()
    return noise


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([-1.5, 1.2, 2.0]),
    st.floats(0.3, 1.4),
    st.sampled_from(["zero", "white", "gaussian"]),
)
def test_one_value_pays_for_itself_or_none_does(seed: int, steepest: float, price: float, start: str) -> None:
    model, images = logistic_unit(steepest, 0.0, seed), images_near(0.5, 0.02, 4)
    # A margin against the target of half a logit keeps the best noise clear of the box.
    model.bias[1] = -0.5 - float(model(images)[:, 1].mean())
    expected = best_noise(model, images, price)
    assume(float(expected.abs().max()) < 0.45)
    attack = NoiseOptimization(c=price, steps=400, start=start)  # type: ignore[arg-type]
    found = attack.perturb(model, images, torch.ones(4, dtype=torch.int64), TARGETED, streams(4))
    torch.testing.assert_close((found - images).flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("share", "moves"), [(0.98, True), (1.02, False)])
def test_the_threshold_is_where_it_should_be(share: float, moves: bool) -> None:
    model, images = logistic_unit(1.3, -1.0), torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    price = share * 1.3 * float(torch.sigmoid(-model(images)[0, 1]))
    attack = NoiseOptimization(c=price, steps=300)
    found = attack.perturb(model, images, torch.ones(1, dtype=torch.int64), TARGETED, streams(1))
    assert bool((found != images).any()) == moves
    torch.testing.assert_close((found - images).flatten(1), best_noise(model, images, price), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", ["zero", "white", "gaussian"])
def test_the_objective_never_rises_and_the_box_holds(start: str) -> None:
    weight = 6 * numbers(3, 5, 48)
    model, images = Linear(weight, -weight.sum(dim=1) / 2).eval(), images_near(0.5, 0.5, 6)
    targets = torch.arange(6) % 5
    last = None
    for steps in (1, 2, 5, 20, 80):
        attack = NoiseOptimization(c=0.05, steps=steps, lr=1000.0, start=start)  # type: ignore[arg-type]
        found = attack.perturb(model, images, targets, TARGETED, streams(6))
        assert bool(((found >= 0) & (found <= 1)).all())
        loss = functional.cross_entropy(model(found), targets, reduction="none")
        objective = loss + 0.05 * norms(found - images, "l1")
        assert last is None or bool((objective <= last + 1e-9).all())
        last = objective
    assert bool((model.predict(found) == targets).all())


def test_white_start_is_a_white_picture() -> None:
    # At no price and without a slope nothing moves, so the start is what comes back.
    flat = Linear(torch.zeros(2, 48).double(), torch.zeros(2).double()).eval()
    images, labels = images_near(0.5, 0.5, 3), torch.zeros(3, dtype=torch.int64)
    white = NoiseOptimization(c=0.0, start="white", steps=2).perturb(flat, images, labels, TARGETED, streams(3))
    torch.testing.assert_close(white, torch.ones_like(images))
    noisy = NoiseOptimization(c=0.0, start="gaussian", std=0.01, steps=2)
    spread = (noisy.perturb(flat, images, labels, TARGETED, streams(3)) - images).std()
    assert float(spread) == pytest.approx(0.01, rel=0.15)


def test_a_higher_price_buys_less_noise() -> None:
    model, images = logistic_unit(2.0, -4.0), images_near(0.5, 0.1, 5)
    sizes = [
        norms(
            NoiseOptimization(c=price).perturb(model, images, torch.ones(5).long(), TARGETED, streams(5)) - images, "l1"
        )
        for price in (0.01, 0.1, 0.5, 3.0)
    ]
    assert all(bool((low >= high - 1e-6).all()) for low, high in itertools.pairwise(sizes))
    assert float(sizes[0].min()) > 0
    assert float(sizes[-1].max()) == 0


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    attack = NoiseOptimization()
    assert attack.refusal(TARGETED, 3) is None
    assert "target" in str(attack.refusal(Threat("l1"), 3))
    assert "eps" in str(attack.refusal(Threat("l1", 1.0, targeted=True), 3))
    with pytest.raises(RequestError, match="c = -1"):
        NoiseOptimization(c=-1.0)
