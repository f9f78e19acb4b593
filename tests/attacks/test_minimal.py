"""Attacks that look for the smallest change, against closed forms on linear models in float64."""

from __future__ import annotations

import pytest
import torch
from closed_forms import (
    SIZE,
    Counting,
    Linear,
    assert_allowed,
    distances,
    images_near,
    margins,
    norms,
    numbers,
    streams,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robbench.attacks._minimum_norm import MinimalNormAttack
from robbench.attacks.carlini_wagner import CarliniWagner
from robbench.attacks.ddn import DDN
from robbench.attacks.deepfool import DeepFool
from robbench.attacks.elastic_net import ElasticNet
from robbench.attacks.fmn import FMN
from robbench.attacks.sigma_zero import SigmaZero
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.threat_model import Norm, Threat

PRECISE_CW = CarliniWagner(search_steps=3, steps=300, lr=0.002)
WITHIN_A_PERCENT: list[tuple[MinimalNormAttack, Norm]] = [
    (PRECISE_CW, "l2"),
    (DDN(), "l2"),
    (FMN(), "linf"),
    (FMN(), "l2"),
    (FMN(), "l1"),
]
EVERY: list[tuple[MinimalNormAttack, Norm]] = [
    (DeepFool(steps=10), "l2"),
    (DeepFool(steps=10), "linf"),
    (CarliniWagner(search_steps=4, steps=20), "l2"),
    (DDN(steps=30), "l2"),
    (FMN(steps=30), "linf"),
    (FMN(steps=30), "l2"),
    (FMN(steps=30), "l1"),
    (FMN(steps=30), "l0"),
    (ElasticNet(search_steps=4, steps=15), "l1"),
    (SigmaZero(steps=30), "l0"),
]


def name(value: object) -> str:
    return f"{value.norm}" if isinstance(value, Threat) else str(value)


def sharp(seed: int, classes: int) -> Linear:
    """A linear model undecided at grey whose scores are far enough apart for cross-entropy to see one rival."""
    weight = 20 * numbers(seed, classes, SIZE)
    return Linear(weight, -weight.sum(dim=1) / 2).eval()


def some(model: Classifier, room: float, count: int, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Images near grey with their decisions, those on a boundary already left out."""
    images = images_near(0.5, room, 40 * count)
    labels = model.predict(images)
    sizes = distances(model, images, labels, "l2").amin(dim=1)  # type: ignore[arg-type]
    index = (sizes > least).nonzero().flatten()[:count]
    assert len(index) == count
    return images[index], labels[index]


class TestClosedForms:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_deepfool_is_there_in_one_step_up_to_its_overshoot(self, norm: Norm, classes: int) -> None:
        model = sharp(21, classes)
        images, labels = some(model, 0.2, 12)
        found = DeepFool(steps=1).perturb(model, images, labels, Threat(norm), streams(12))
        assert bool((model.predict(found) != labels).all())
        expected = distances(model, images, labels, norm).amin(dim=1)
        torch.testing.assert_close(norms(found - images, norm), 1.02 * expected, rtol=1e-9, atol=0)
        assert torch.equal(DeepFool().perturb(model, images, labels, Threat(norm), streams(12)), found)
        # One candidate: the class with the best other score, whether or not it is the nearest.
        few = DeepFool(candidates=1).perturb(model, images, labels, Threat(norm), streams(12))
        best = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
        to_best = distances(model, images, labels, norm).gather(1, best[:, None]).squeeze(1)
        torch.testing.assert_close(norms(few - images, norm), 1.02 * to_best, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize(("attack", "norm"), WITHIN_A_PERCENT, ids=name)
    def test_the_nearest_boundary_is_met_within_a_percent(
        self, attack: MinimalNormAttack, norm: Norm, classes: int
    ) -> None:
        model = sharp(21, classes)
        images, labels = some(model, 0.3 if norm != "l1" else 0.1, 6, least=0.12 if norm != "l1" else 0.03)
        every = distances(model, images, labels, norm)
        expected, nearest = every.min(dim=1)
        found = attack.perturb(model, images, labels, Threat(norm), streams(6))
        sizes = norms(found - images, norm)
        assert bool((model.predict(found) != labels).all())
        assert bool((sizes >= expected * (1 - 1e-9)).all())
        # Scores lead to the best other class, which need not be the nearest; where it is, nothing else is in the way.
        led = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1) == nearest
        assert bool(led.any())
        assert bool((sizes[led] <= 1.01 * expected[led]).all()), sizes / expected

        targeted = attack.perturb(model, images, nearest, Threat(norm, None, targeted=True), streams(6))
        assert bool((model.predict(targeted) == nearest).all())
        sizes = norms(targeted - images, norm)
        assert bool((sizes >= expected * (1 - 1e-9)).all())
        assert bool((sizes <= 1.01 * expected).all()), sizes / expected

    def test_elastic_net_lies_between_the_least_l1_and_its_own_optimum(self) -> None:
        model = sharp(21, 2)
        images, labels = some(model, 0.1, 8)
        sparse, elastic = (
            ElasticNet(rule=rule).perturb(model, images, labels, Threat("l1"), streams(8)) - images
            for rule in ("l1", "elastic-net")
        )
        assert bool((model.predict(images + sparse) != labels).all())
        assert bool((model.predict(images + elastic) != labels).all())
        # A threshold of beta after steps of length lr is the proximal step of an L1 term of weight beta / lr.
        slopes, weight = (model.weight[1] - model.weight[0]).abs(), ElasticNet().beta / ElasticNet().lr
        own = torch.stack([elastic_optimum(slopes, float(gap), weight) for gap in margins(model, images, labels)])
        least = distances(model, images, labels, "l1").amin(dim=1)
        assert float((own / least).median()) > 1.05
        size = norms(sparse, "l1")
        assert bool((size >= least * (1 - 1e-9)).all())
        assert bool((size <= 1.03 * own).all()), size / own
        assert float(norms(sparse, "l0").mean()) < SIZE / 2
        assert bool((size <= norms(elastic, "l1") + 1e-12).all())
        paid = [ElasticNet().beta * norms(change, "l1") + norms(change, "l2") ** 2 for change in (sparse, elastic)]
        assert bool((paid[1] <= paid[0] + 1e-12).all())
        assert bool((paid[1] < paid[0]).any())

    @pytest.mark.parametrize(("seed", "room"), [(3, 0.05), (4, 0.05), (3, 0.2)])
    def test_fmn_changes_as_few_values_as_can_be(self, seed: int, room: float) -> None:
        model = sharp(seed, 2)
        model.bias[0] += 200
        images = images_near(0.5, room, 16)
        labels = model.predict(images)
        found = FMN().perturb(model, images, labels, Threat("l0"), streams(16))
        assert bool((model.predict(found) != labels).all())
        # Values moved to the end of the box, those that tell most first.
        slopes, flat = model.weight[1 - labels] - model.weight[labels], images.flatten(1)
        gains = (
            (slopes.abs() * torch.where(slopes > 0, 1 - flat, flat)).sort(dim=1, descending=True).values.cumsum(dim=1)
        )
        least = 1 + (gains <= margins(model, images, labels)[:, None]).sum(dim=1)
        excess = norms(found - images, "l0") - least
        assert float(least.double().mean()) > 5
        assert float(excess.min()) >= 0
        assert float(excess.max()) <= 1
        assert float((excess == 0).double().mean()) >= (0.9 if room < 0.1 else 0.5)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 1000), st.sampled_from([2, 3]), st.sampled_from(EVERY))
    def test_nothing_is_nearer_than_the_boundary_where_the_box_holds(
        self, seed: int, classes: int, chosen: tuple[MinimalNormAttack, Norm]
    ) -> None:
        attack, norm = chosen
        model, images = sharp(seed, classes), images_near(0.5, 0.5, 6, seed=seed)
        images = torch.where((images - 0.5).abs() > 0.3, images.round(), images)
        labels = model.predict(images)
        found = attack.perturb(model, images, labels, Threat(norm), streams(6))
        assert_allowed(images, found, Threat(norm))
        fooled = model.predict(found) != labels
        assert torch.equal(found[~fooled], images[~fooled])
        if not isinstance(attack, CarliniWagner | ElasticNet):
            assert bool(fooled.all())
        if norm == "l0":
            assert float(norms(found - images, norm)[fooled].min()) >= 1
        else:
            least = distances(model, images, labels, norm).amin(dim=1)
            assert bool((norms(found - images, norm) >= least * (1 - 1e-9))[fooled].all())


def elastic_optimum(slopes: Tensor, gap: float, weight: float) -> Tensor:
    """L1 size of the change that crosses ``gap`` at the least ``‖change‖₂² + weight * ‖change‖₁``, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        change = ((middle * slopes - weight) / 2).clamp(min=0)
        low, high = (middle, high) if float((slopes * change).sum()) < gap else (low, middle)
    return change.sum()


class HardElsewhere(Linear):
    """Its hard decision falls later than its scores do: only where the first class lacks a lead of -2."""

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(images)
        return scores, (scores[:, 1] - scores[:, 0] > 2).long()


class TestContract:
    @pytest.mark.parametrize(("attack", "norm"), EVERY, ids=name)
    def test_samples_that_are_fooled_already_come_back_after_one_pass(
        self, attack: MinimalNormAttack, norm: Norm
    ) -> None:
        plain, images = sharp(13, 3), images_near(0.5, 0.3, 6)
        labels = plain.predict(images)
        labels[:3] = (labels[:3] + 1) % 3
        model = Counting.of(plain, 6)
        found = attack.perturb(model, images, labels, Threat(norm), streams(6))
        assert torch.equal(found[:3], images[:3])
        assert bool((found[3:] != images[3:]).flatten(1).any(dim=1).all())
        assert model.forwards[:3].tolist() == [1] * 3
        assert model.backwards[:3].tolist() == [0] * 3
        if attack.targetable:
            threat = Threat(norm, None, targeted=True)
            assert torch.equal(attack.perturb(plain, images, plain.predict(images), threat, streams(6)), images)

    @pytest.mark.parametrize(("attack", "norm"), EVERY, ids=name)
    @pytest.mark.parametrize("slope", [0.0, 1e-12])
    def test_announced_passes_are_reached_where_nothing_fools_and_nothing_changes(
        self, attack: MinimalNormAttack, norm: Norm, slope: float
    ) -> None:
        out_of_reach = Linear(slope * numbers(5, 3, SIZE), torch.tensor([9.0, 0.0, 0.0]).double()).eval()
        model, images = Counting.of(out_of_reach, 4), images_near(0.5, 0.5, 4)
        found = attack.perturb(model, images, torch.zeros(4, dtype=torch.int64), Threat(norm), streams(4))
        assert torch.equal(found, images)
        if isinstance(attack, CarliniWagner | ElasticNet):
            assert float(model.forwards.max()) < attack.passes(3)[0]
        else:
            assert model.forwards.tolist() == [attack.passes(3)[0]] * 4
            assert model.backwards.tolist() == [attack.passes(3)[1]] * 4

    def test_announced_passes_are_reached_by_those_that_may_leave_early(self) -> None:
        model = Counting.of(sharp(13, 3), 4)
        images = images_near(0.5, 0.3, 4)
        labels = model.predict(images)
        for attack, norm in (
            (CarliniWagner(search_steps=3, steps=5, abort_early=False), "l2"),
            (ElasticNet(search_steps=3, steps=5, c=100.0), "l1"),
        ):
            model.forwards.zero_(), model.backwards.zero_()
            attack.perturb(model, images, labels, Threat(norm), streams(4))  # type: ignore[arg-type]
            assert model.forwards.tolist() == [attack.passes(3)[0]] * 4
            assert model.backwards.tolist() == [attack.passes(3)[1]] * 4

    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(("attack", "norm"), EVERY, ids=name)
    def test_hard_decisions_count_rather_than_scores(
        self, attack: MinimalNormAttack, norm: Norm, targeted: bool
    ) -> None:
        weight = numbers(3, 2, SIZE)
        model = HardElsewhere(weight, -weight.sum(dim=1) / 2 + torch.tensor([0.1, 0.0])).eval()
        images = images_near(0.5, 0.01, 4)
        # The second score leads already.
        model.bias[1] += 1 + margins(model, images, torch.zeros(4, dtype=torch.int64)).mean()
        assert bool((model(images).argmax(dim=1) == 1).all())
        assert bool((model.predict(images) == 0).all())
        if targeted and not attack.targetable:
            assert "targeted" in str(attack.refusal(Threat(norm, None, targeted=True), 2))
            return
        labels = torch.full((4,), int(targeted))
        found = attack.perturb(model, images, labels, Threat(norm, None, targeted), streams(4))
        assert bool((model.predict(found) == 1).all())

    def test_confidence_asks_for_a_lead(self) -> None:
        model, images = sharp(3, 3), images_near(0.5, 0.1, 4)
        labels = model.predict(images)
        for attack, norm in (
            (CarliniWagner(confidence=5.0, search_steps=5, steps=100), "l2"),
            (ElasticNet(confidence=5.0, search_steps=5, steps=50), "l1"),
        ):
            found = attack.perturb(model, images, labels, Threat(norm), streams(4))  # type: ignore[arg-type]
            assert bool((margins(model, found, labels) <= -5).all())

    def test_what_they_cannot_do_is_refused(self) -> None:
        for attack, norm in EVERY:
            assert attack.refusal(Threat(norm), 2) is None
            assert "eps" in str(attack.refusal(Threat(norm, 0.1), 2))
            assert not attack.bounded
            assert attack.white_box
        with pytest.raises(RequestError, match="gamma"):
            DDN(gamma=1.0)
