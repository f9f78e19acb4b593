from __future__ import annotations

import math

import pytest
import torch
from closed_forms import assert_allowed, images_near, linear, norms, streams
from torch import Tensor

from robbench.attacks.noise_search import NoiseSearch
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle


def at_margin(share: float, eps: float, count: int) -> tuple[Tensor, Tensor]:
    """Copies of an image of class 1 whose margin is a share of ``eps ‖w‖₂`` on ``linear(3, 2)``."""
    model = linear(3, 2)
    slope = model.weight[1] - model.weight[0]
    size = float(torch.linalg.vector_norm(slope))
    image = torch.full((48,), 0.5, dtype=torch.float64) + share * eps * slope / size
    return image.reshape(1, 3, 4, 4).repeat(count, 1, 1, 1), torch.ones(count, dtype=torch.int64)


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_one_draw_of_signs_succeeds_as_often_as_it_should(share: float) -> None:
    count, eps = 4000, 0.05
    images, labels = at_margin(share, eps, count)
    attacked = NoiseSearch(draws=1).perturb(linear(3, 2), images, labels, Threat("linf", eps), streams(count))
    rate = float((linear(3, 2).predict(attacked) != labels).double().mean())
    assert rate == pytest.approx(0.5 * math.erfc(share / math.sqrt(2)), abs=0.03)


def test_many_draws_succeed_as_independent_ones_do() -> None:
    count, eps, share, draws = 1500, 0.05, 2.0, 20
    images, labels = at_margin(share, eps, count)
    attacked = NoiseSearch(draws=draws).perturb(linear(3, 2), images, labels, Threat("linf", eps), streams(count))
    rate = float((linear(3, 2).predict(attacked) != labels).double().mean())
    # Uniform noise has a third of the variance of signs.
    corner, inside = (0.5 * math.erfc(x / math.sqrt(2)) for x in (share, share * math.sqrt(3)))
    expected = 1 - ((1 - corner) * (1 - inside)) ** (draws // 2)
    assert rate == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0)])
def test_draws_alternate_between_the_surface_and_the_inside(norm: Norm, eps: float) -> None:
    model, images = linear(3, 2), images_near(0.5, 0.01, 300)
    labels = model.predict(images)
    model.bias.data[0] += 1e6 * (1 - 2 * labels[0])  # nothing misleads it
    labels = model.predict(images)
    threat = Threat(norm, eps)
    for draws, on_surface in ((1, True), (2, False), (5, True), (6, False)):
        attacked = NoiseSearch(draws=draws).perturb(model, images, labels, threat, streams(300))
        assert_allowed(images, attacked, threat)
        sizes = norms(attacked - images, norm)
        assert bool((sizes > eps * (1 - 1e-9)).all()) == on_surface


def test_misled_samples_leave_and_the_first_draw_counts() -> None:
    count, eps = 200, 0.05
    images, labels = at_margin(1.5, eps, count)
    model = Oracle(linear(3, 2), count)
    attacked = NoiseSearch(draws=40).perturb(model, images, labels, Threat("linf", eps), streams(count))
    misled = linear(3, 2).predict(attacked) != labels
    spent = model.forwards
    assert bool(misled.any())
    assert float(spent.max()) == 40
    assert float(spent[misled].mean()) < 20
    early = NoiseSearch(draws=8).perturb(linear(3, 2), images, labels, Threat("linf", eps), streams(count))
    first = linear(3, 2).predict(early) != labels
    assert torch.equal(attacked[first], early[first])
