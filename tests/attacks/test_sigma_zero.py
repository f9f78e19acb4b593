"""σ-zero against the fewest changes that can fool a linear model."""

from __future__ import annotations

import pytest
import torch
from closed_forms import SIZE, Linear, assert_allowed, images_near, margins, norms, numbers, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robbench.attacks.sigma_zero import SigmaZero
from robbench.core.attack import Attack
from robbench.core.threat_model import Threat

L0 = Threat("l0")
SCALES = (1e-30, 1e-6, 1e-4, 1e2, 1e4, 1e6, 1e30)


def decided(seed: int, lead: float, scale: float = 1.0) -> Linear:
    """A model of two classes that says the first one of grey, by a lead."""
    weight = 20 * numbers(seed, 2, SIZE)
    bias = -weight.sum(dim=1) / 2 + torch.tensor([lead, 0.0]).double()
    return Linear(scale * weight, scale * bias).eval()


def fewest(model: Linear, images: Tensor, labels: Tensor) -> Tensor:
    """The fewest values that fool a model of two classes: those that tell most, moved to the end of the box."""
    slopes, flat = model.weight[1 - labels] - model.weight[labels], images.flatten(1)
    gains = slopes.abs() * torch.where(slopes > 0, 1 - flat, flat)
    reached = gains.sort(dim=1, descending=True).values.cumsum(dim=1)
    return 1 + (reached <= margins(model, images, labels)[:, None]).sum(dim=1)


def changed(attack: Attack, model: Linear, images: Tensor, labels: Tensor) -> Tensor:
    """How many values the attack changes; it must fool the model."""
    found = attack.perturb(model, images, labels, L0, streams(len(images)))
    assert_allowed(images, found, L0)
    assert bool((model.predict(found) != labels).all())
    return norms(found - images, "l0")


@pytest.mark.parametrize(("seed", "room"), [(3, 0.05), (4, 0.05), (3, 0.2), (3, 0.5)])
def test_it_comes_near_the_fewest_changes_that_can_be(seed: int, room: float) -> None:
    model, images = decided(seed, 200), images_near(0.5, room, 16)
    labels = model.predict(images)
    least = fewest(model, images, labels)
    excess = changed(SigmaZero(steps=200), model, images, labels) - least
    assert float(least.double().mean()) > 5
    assert float(excess.min()) >= 0
    assert float(excess.max()) <= 2
    assert float(excess.mean()) <= (0.25 if room < 0.1 else 0.75)


def test_the_scale_of_the_scores_changes_nothing() -> None:
    images = images_near(0.5, 0.2, 8).float()
    found = []
    for scale in SCALES:
        model = decided(3, 200, scale).float()
        found.append(changed(SigmaZero(steps=60), model, images, model.predict(images)))
    assert torch.equal(torch.stack(found), found[0].expand(len(SCALES), -1))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0, 300),
    st.floats(0.05, 2),
    st.floats(0, 1),
    st.floats(0, 0.1),
    st.sampled_from([1e-6, 1e-3, 0.1]),
)
def test_no_setting_needs_fewer_changes_than_can_be(
    seed: int, lead: float, lr: float, tau: float, t: float, sigma: float
) -> None:
    model, images = decided(seed, lead), images_near(0.5, 0.5, 6, seed=seed)
    images = torch.where((images - 0.5).abs() > 0.3, images.round(), images)
    labels = model.predict(images)
    attack = SigmaZero(steps=25, lr=lr, tau=tau, t=t, sigma=sigma)
    found = attack.perturb(model, images, labels, L0, streams(6))
    assert_allowed(images, found, L0)
    fooled = model.predict(found) != labels
    assert torch.equal(found[~fooled], images[~fooled])
    assert bool((norms(found - images, "l0") >= fewest(model, images, labels))[fooled].all())


def test_targets_are_reached_with_few_changes() -> None:
    model, images = Linear(numbers(5, 10, SIZE), torch.zeros(10).double()).eval(), images_near(0.5, 0.3, 8)
    targets = (model.predict(images) + 3) % 10
    found = SigmaZero(steps=100).perturb(model, images, targets, Threat("l0", None, targeted=True), streams(8))
    assert torch.equal(model.predict(found), targets)
    assert float(norms(found - images, "l0").max()) < SIZE / 2
