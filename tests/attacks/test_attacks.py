"""Gradient attacks and noise against closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from closed_forms import (
    Counting,
    Linear,
    assert_allowed,
    assert_optimal,
    distances,
    images_near,
    largest_gain,
    linear,
    margins,
    norms,
    numbers,
    streams,
)
from torch import Tensor

from robbench.attacks._gradients import input_gradient
from robbench.attacks.bim import BIM
from robbench.attacks.fgm import FGM
from robbench.attacks.mi_fgsm import MIFGSM
from robbench.attacks.noise import GaussianNoise, UniformNoise
from robbench.attacks.none import NoAttack
from robbench.attacks.pgd import PGD
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

# Steps of two eps turn a random start on the sphere to the slope within a few steps.
LONG_PGD = PGD(rel_step=2.0, early_stop=False)


def name(value: object) -> str:
    return f"{value.norm}" if isinstance(value, Threat) else str(value)


@dataclass(frozen=True)
class TooFar(Attack):
    """FGM that oversteps the ball by one percent."""

    targetable: ClassVar[bool] = True

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, threat: Threat, rng: Streams) -> Tensor:
        further = Threat(threat.norm, 1.01 * threat.radius, threat.targeted)
        return FGM().perturb(model, images, labels, further, rng)


class TestOptimality:
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(
        "attack",
        [FGM(), PGD(random_start=False, early_stop=False), BIM(early_stop=False), MIFGSM(early_stop=False)],
        ids=name,
    )
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("linf", 0.7), ("l2", 0.4), ("l1", 0.4)])
    def test_reaches_the_best_on_a_linear_model(self, attack: Attack, norm: Norm, eps: float, targeted: bool) -> None:
        if not (norm == "l1" and isinstance(attack, MIFGSM)):
            assert_optimal(attack, norm, eps, targeted)

    @pytest.mark.parametrize("targeted", [False, True])
    def test_so_does_pgd_from_a_random_start(self, targeted: bool) -> None:
        assert_optimal(PGD(early_stop=False), "linf", 0.3, targeted)
        assert_optimal(PGD(early_stop=False), "l1", 0.3, targeted)
        assert_optimal(LONG_PGD, "l2", 0.3, targeted)

    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.4), ("l1", 0.4)])
    @pytest.mark.parametrize("attack", [NoAttack(), TooFar()], ids=name)
    def test_the_check_itself_fails_attacks_that_do_nothing_or_too_much(
        self, attack: Attack, norm: Norm, eps: float
    ) -> None:
        with pytest.raises(AssertionError):
            assert_optimal(attack, norm, eps)

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize("share", [0.98, 1.02])
    def test_pgd_fools_exactly_where_the_margin_is_within_reach(self, norm: Norm, share: float) -> None:
        model, base = linear(5, 2), images_near(0.5, 0.01, 16)
        slope = model.weight[1] - model.weight[0]
        dual = torch.linalg.vector_norm(slope, {"linf": 1, "l2": 2, "l1": math.inf}[norm])
        eps = 0.2
        # Move every image along the slope until its margin is the given share of what eps can undo.
        wanted = share * eps * dual
        flat = base.flatten(1)
        signed = flat @ slope + (model.bias[1] - model.bias[0])
        images = (flat + ((wanted - signed) / slope.square().sum())[:, None] * slope).reshape(base.shape)
        labels = torch.ones(16, dtype=torch.int64)
        attacked = PGD(steps=20, rel_step=2.0).perturb(model, images, labels, Threat(norm, eps), streams(16))
        assert_allowed(images, attacked, Threat(norm, eps))
        assert bool((model.predict(attacked) != labels).all()) == (share < 1)
        assert bool((model.predict(attacked) == labels).all()) == (share > 1)

    def test_l1_step_fills_the_values_that_have_room(self) -> None:
        weight = torch.zeros(2, 48, dtype=torch.float64)
        weight[1, :3] = torch.tensor([3.0, 2.0, -1.0])
        model = Linear(weight, torch.tensor([-10.0, 0.0], dtype=torch.float64)).eval()
        images = torch.full((1, 3, 4, 4), 0.9, dtype=torch.float64)
        # Away from class 0: 0.1 of room in the first value, 0.1 in the second, the rest goes down in the third.
        attacked = FGM().perturb(model, images, torch.tensor([0]), Threat("l1", 0.5), streams(1))
        moved = torch.zeros(48, dtype=torch.float64)
        moved[:3] = torch.tensor([0.1, 0.1, -0.3])
        torch.testing.assert_close((attacked - images).flatten(), moved)

    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize("attack", [FGM(), PGD()], ids=name)
    def test_targets_come_nearer_with_any_number_of_classes(self, attack: Attack, norm: Norm, classes: int) -> None:
        model, images = linear(7, classes), images_near(0.5, 0.4, 12)
        targets = (model.predict(images) + 1) % classes
        attacked = attack.perturb(model, images, targets, Threat(norm, 1.0, targeted=True), streams(12))
        assert_allowed(images, attacked, Threat(norm, 1.0))
        assert bool((margins(model, attacked, targets) > margins(model, images, targets)).all())

    @pytest.mark.parametrize("classes", [3, 10])
    def test_no_attack_fools_below_the_distance_of_a_linear_model(self, classes: int) -> None:
        model, images = linear(9, classes), images_near(0.5, 0.05, 24)
        labels = model.predict(images)
        distance = distances(model, images, labels, "l2").amin(dim=1)
        eps = float(distance.median())
        attacked = PGD(steps=30, restarts=2).perturb(model, images, labels, Threat("l2", eps), streams(24))
        fooled = model.predict(attacked) != labels
        assert not bool((fooled & (distance > eps * (1 + 1e-9))).any())
        assert bool(fooled[distance < 0.8 * eps].all())


class TestPasses:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_samples_leave_and_are_no_longer_charged(self, norm: Norm) -> None:
        plain, images = linear(13, 3), images_near(0.5, 0.3, 20)
        labels = plain.predict(images)
        labels[:5] = (labels[:5] + 1) % 3
        model = Counting.of(plain, 20)
        attack = PGD(steps=6, restarts=2, random_start=False)
        eps = {"linf": 0.02, "l2": 0.15, "l1": 0.5}[norm]
        attacked = attack.perturb(model, images, labels, Threat(norm, eps), streams(20))
        assert model.forwards[:5].tolist() == [1] * 5
        assert torch.equal(attacked[:5], images[:5])
        robust = plain.predict(attacked) == labels
        assert bool(robust.any())
        assert not bool(robust.all())
        # The forward pass after the last step of the last restart is not needed.
        assert model.forwards[robust].tolist() == [2 * 6 + 1] * int(robust.sum())
        assert model.backwards[robust].tolist() == [2 * 6] * int(robust.sum())
        assert float(model.forwards[~robust].max()) < 2 * 6 + 1


class Band(Classifier):
    """Class 1 wherever the first value is above 0.55 and below 0.65, with a slope that always points up."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(first), first], dim=1)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(images)
        return scores, ((scores[:, 1] > 0.55) & (scores[:, 1] < 0.65)).long()

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class TestBestIterate:
    @pytest.mark.parametrize("early_stop", [True, False])
    @pytest.mark.parametrize(
        "attack",
        [*(PGD(rel_step=0.25, random_start=False, restarts=count) for count in (1, 3)), BIM(), MIFGSM()],
        ids=str,
    )
    def test_an_iterate_that_fooled_is_not_walked_away_from(self, attack: PGD | BIM | MIFGSM, early_stop: bool) -> None:
        model, images = Band().eval(), torch.full((3, 3, 4, 4), 0.5, dtype=torch.float64)
        labels = torch.zeros(3, dtype=torch.int64)
        attacked = replace(attack, early_stop=early_stop).perturb(
            model, images, labels, Threat("linf", 0.4), streams(3)
        )
        assert bool((model.predict(attacked) == 1).all())

    def test_hard_decisions_count_rather_than_scores(self) -> None:
        model, images = Band().eval(), torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
        attack = PGD(steps=20, rel_step=0.1, random_start=False)
        attacked = attack.perturb(model, images, torch.zeros(2).long(), Threat("linf", 0.4), streams(2))
        assert bool((attacked.flatten(1)[:, 0] < 0.65).all())

    def test_without_early_stop_the_last_fooled_iterate_is_returned(self) -> None:
        model, images = linear(3, 2), images_near(0.5, 0.01, 8)
        labels = model.predict(images)
        threat = Threat("linf", 0.3)
        first = PGD(random_start=False).perturb(model, images, labels, threat, streams(8))
        last = PGD(random_start=False, early_stop=False).perturb(model, images, labels, threat, streams(8))
        assert bool((margins(model, last, labels) < margins(model, first, labels)).all())
        assert bool((margins(model, first, labels) < 0).all())


class TestNoise:
    def test_random_signs_fool_a_linear_model_as_often_as_they_should(self) -> None:
        count, eps = 4000, 0.05
        model = linear(3, 2)
        slope = model.weight[1] - model.weight[0]
        size = float(torch.linalg.vector_norm(slope))
        for share in (0.5, 1.0):
            margin = share * eps * size
            image = torch.full((48,), 0.5, dtype=torch.float64) + margin * slope / size**2
            images = image.reshape(1, 3, 4, 4).repeat(count, 1, 1, 1)
            labels = torch.ones(count, dtype=torch.int64)
            attacked = UniformNoise(signs=True).perturb(model, images, labels, Threat("linf", eps), streams(count))
            assert bool(((attacked - images).abs() - eps).abs().max() < 1e-12)
            rate = float((model.predict(attacked) != labels).double().mean())
            expected = 0.5 * math.erfc(share / math.sqrt(2))
            assert rate == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count) + 0.01)

    def test_uniform_noise_is_uniform(self) -> None:
        images = torch.full((2000, 3, 4, 4), 0.5, dtype=torch.float64)
        change = UniformNoise().perturb(linear(2, 2), images, torch.zeros(2000), Threat("linf", 0.2), streams(2000))
        change = (change - images) / 0.2
        assert float(change.mean()) == pytest.approx(0, abs=0.01)
        assert float(change.square().mean()) == pytest.approx(1 / 3, abs=0.01)
        assert float(change.abs().max()) <= 1

    def test_gaussian_noise_has_its_size(self) -> None:
        images = torch.full((500, 3, 4, 4), 0.5, dtype=torch.float64)
        model, labels, rng = linear(2, 2), torch.zeros(500), streams(500)
        free = GaussianNoise(std=0.1).perturb(model, images, labels, Threat("none"), rng) - images
        assert float(free.std()) == pytest.approx(0.1, rel=0.02)
        assert float(free.mean()) == pytest.approx(0, abs=0.003)
        bound = GaussianNoise().perturb(model, images, labels, Threat("l2", 0.5), rng) - images
        torch.testing.assert_close(norms(bound, "l2"), torch.full((500,), 0.5, dtype=torch.float64))


class TestGradients:
    def test_input_gradient_is_the_derivative(self) -> None:
        images = images_near(0.5, 0.3, 3)
        slope = numbers(4, *images.shape)
        with torch.no_grad():
            gradient = input_gradient(lambda x: (slope * x.square()).sum(), images)
        torch.testing.assert_close(gradient, 2 * slope * images)

    def test_largest_gain_agrees_with_vertices(self) -> None:
        slope, image = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.95, 0.5]]).double()
        assert float(largest_gain(slope, image, "linf", 0.1)) == pytest.approx(0.05 + 0.2)
        assert float(largest_gain(slope, image, "l1", 0.1)) == pytest.approx(0.2)
        assert float(largest_gain(slope, image, "l2", 0.1)) == pytest.approx(0.1 * math.sqrt(5))
