"""The ensemble for every model: any number of classes, every score that follows the decision, few passes."""

from __future__ import annotations

import pytest
import torch
from closed_forms import Constant, assert_allowed, images_near, largest_gain, linear, margins, numbers, streams
from subjects import exact
from torch import Tensor
from traps import Misleading, Quantised, Wrapped

from robbench.attacks.autoattack import AutoAttack
from robbench.attacks.strong import Strong
from robbench.attacks.thorough import Thorough
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle

SMALL = Strong(steps=30, targets=3, queries=30)


def fooled(attack: Strong, model: Classifier, threat: Threat, count: int = 40) -> Tensor:
    images = images_near(0.5, 0.4, count)
    with torch.no_grad():
        labels = model.predict(images)
        found = attack.perturb(model, images, labels, threat, streams(count))
        assert_allowed(images, found, threat)
        return model.predict(found) != labels


@pytest.mark.parametrize("eps", [0.005, 0.02, 0.05])
def test_it_fools_whatever_can_be_fooled_on_a_linear_model(eps: float) -> None:
    model, images = linear(3, 2), images_near(0.5, 0.4, 40)
    with torch.no_grad():
        labels = model.predict(images)
    slopes = model.weight[1 - labels] - model.weight[labels]
    possible = margins(model, images, labels) < largest_gain(slopes, images, "linf", eps)
    assert int(possible.sum()) > 0
    torch.testing.assert_close(fooled(SMALL, model, Threat("linf", eps)), possible)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 5.0)])
def test_any_number_of_classes(classes: int, norm: Norm, eps: float) -> None:
    assert fooled(SMALL, linear(3, classes), Threat(norm, eps)).double().mean() > 0.8


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 2.0), ("l1", 10.0), ("l0", 30)])
def test_targets_are_reached(norm: Norm, eps: float) -> None:
    model, images = linear(3, 4), images_near(0.5, 0.1, 20)
    targets = (model.predict(images) + 1) % 4
    found = SMALL.perturb(model, images, targets, Threat(norm, eps, targeted=True), streams(20))
    assert_allowed(images, found, Threat(norm, eps))
    assert bool((model.predict(found) == targets).all())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.05), ("l1", 0.2)])
def test_a_target_that_is_out_of_reach_is_come_near_to(norm: Norm, eps: float) -> None:
    model, images = linear(3, 4), images_near(0.5, 0.1, 20)
    targets = model(images).argmin(dim=1)
    found = SMALL.perturb(model, images, targets, Threat(norm, eps, targeted=True), streams(20))
    rise = model(found).gather(1, targets[:, None]) - model(images).gather(1, targets[:, None])
    left = model.predict(found) != targets
    assert int(left.sum()) > 10
    assert bool((rise[left] > 0).all())


class Rooted(Wrapped):
    """Where a value of the image is zero, gradients are no numbers and scores are."""

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images) + 0 * images.sqrt().flatten(1).sum(dim=1, keepdim=True)
        return result


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 5.0), ("l0", 20)])
def test_gradients_that_are_no_numbers_do_not_spoil_an_image(norm: Norm, eps: float) -> None:
    model, images = Rooted(exact(4)), images_near(0.5, 0.4, 20)
    images[:, 0, 0, 0] = 0
    labels = model.predict(images)
    found = SMALL.perturb(model, images, labels, Threat(norm, eps), streams(20))
    assert_allowed(images, found, Threat(norm, eps))
    assert int((model.predict(found) != labels).sum()) >= 10


@pytest.mark.parametrize("trap", [Quantised, Misleading])
def test_it_needs_no_gradient_that_leads_anywhere(trap: type[Wrapped]) -> None:
    model, threat = trap(exact(4)), Threat("linf", 0.04)
    alone = fooled(Strong(steps=30, targets=3, queries=1), model, threat)
    searched = fooled(Strong(steps=30, targets=3, queries=1500), model, threat)
    assert searched.double().mean() - alone.double().mean() > 0.1


class Other(Wrapped):
    """Shows scores that lead nowhere, and offers those that it decides by."""

    surrogates: tuple[str, ...] = ("honest",)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images).detach() + 0 * images.sum()
        return result

    def surrogate(self, name: str) -> Classifier:
        return {"honest": self.inner}[name]


def test_scores_that_follow_the_decision_are_tried() -> None:
    model, threat = Other(exact(4)), Threat("linf", 0.04)
    aided = fooled(Strong(steps=30, queries=1), model, threat).double().mean()
    model.surrogates = ()
    assert aided - fooled(Strong(steps=30, queries=1), model, threat).double().mean() > 0.1


def test_a_twenty_sixth_of_the_passes_of_autoattack() -> None:
    assert Strong().passes(10) == (281, 89)
    assert 26 * sum(Strong().passes(10)) <= sum(AutoAttack().passes(10))
    assert sum(Thorough().passes(10)) <= sum(AutoAttack().passes(10))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_sample_that_is_never_fooled_costs_what_is_said(classes: int) -> None:
    weight = numbers(0, classes, 48)
    model = Constant(weight, torch.arange(classes).double().flip(0)).eval()
    images = images_near(0.5, 0.4, 3)
    oracle = Oracle(model, 3)
    SMALL.perturb(oracle, images, model.predict(images), Threat("linf", 0.1), streams(3))
    assert oracle.forwards.tolist() == [SMALL.passes(classes)[0]] * 3


def test_samples_that_are_fooled_early_cost_little() -> None:
    model, images = linear(3, 3), images_near(0.5, 0.1, 10)
    oracle = Oracle(model, 10)
    SMALL.perturb(oracle, images, model.predict(images), Threat("linf", 0.5), streams(10))
    assert float(oracle.forwards.max()) <= 4
