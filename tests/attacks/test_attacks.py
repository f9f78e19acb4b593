"""Gradient attacks and noise against closed forms, and what every attack is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from closed_forms import (
    Constant,
    Counting,
    Linear,
    assert_allowed,
    assert_optimal,
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
from robbench.attacks.color_jitter import ColorJitter
from robbench.attacks.fgm import FGM
from robbench.attacks.noise import GaussianNoise, UniformNoise
from robbench.attacks.noise_optimization import NoiseOptimization
from robbench.attacks.none import NoAttack
from robbench.attacks.perturbation import Perturbation
from robbench.attacks.pgd import PGD
from robbench.attacks.pixel_corruption import PixelCorruption
from robbench.attacks.rotation import Rotation
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat

# Steps of two eps turn a random start on the sphere to the slope within a few steps.
LONG_PGD = PGD(rel_step=2.0, early_stop=False)
BOUNDED: list[tuple[Attack, Norm]] = [
    (FGM(), "linf"),
    (FGM(), "l2"),
    (FGM(), "l1"),
    (PGD(), "linf"),
    (PGD(), "l2"),
    (PGD(restarts=2, steps=3), "l1"),
    (PGD(random_start=False, early_stop=False), "l2"),
    (UniformNoise(), "linf"),
    (UniformNoise(signs=True), "linf"),
    (GaussianNoise(), "l2"),
]
FREE: list[tuple[Attack, Threat]] = [
    (NoAttack(), Threat("none")),
    (GaussianNoise(), Threat("none")),
    (ColorJitter(), Threat("none")),
    (Rotation(), Threat("none")),
    (PixelCorruption(pixels=3), Threat("none")),
    (Perturbation(pixels=3), Threat("none")),
    (NoiseOptimization(steps=5), Threat("l1", None, targeted=True)),
]
EVERY = [(attack, Threat(norm, 0.2)) for attack, norm in BOUNDED] + FREE


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
    @pytest.mark.parametrize("attack", [FGM(), PGD(random_start=False, early_stop=False)], ids=name)
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("linf", 0.7), ("l2", 0.4), ("l1", 0.4)])
    def test_reaches_the_best_on_a_linear_model(self, attack: Attack, norm: Norm, eps: float, targeted: bool) -> None:
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
        scores = model(images)
        gaps = scores.gather(1, labels[:, None]) - scores
        slopes = model.weight[None] - model.weight[labels][:, None]
        sizes = torch.linalg.vector_norm(slopes, dim=2)
        distance = torch.where(sizes > 0, gaps / sizes, torch.inf).amin(dim=1)
        eps = float(distance.median())
        attacked = PGD(steps=30, restarts=2).perturb(model, images, labels, Threat("l2", eps), streams(24))
        fooled = model.predict(attacked) != labels
        assert not bool((fooled & (distance > eps * (1 + 1e-9))).any())
        assert bool(fooled[distance < 0.8 * eps].all())


class TestContract:
    @pytest.mark.parametrize(("attack", "threat"), EVERY, ids=name)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("count", [1, 9])
    def test_results_are_allowed_and_nothing_else_changes(
        self, attack: Attack, threat: Threat, dtype: torch.dtype, count: int
    ) -> None:
        model = linear(2, 3).to(dtype).requires_grad_(True)
        images = images_near(0.5, 0.5, count).to(dtype)
        labels = torch.arange(count) % 3
        before, weight, state = images.clone(), model.weight.clone(), torch.get_rng_state()
        with torch.no_grad():
            attacked = attack.perturb(model, images, labels, threat, streams(count))
            assert not torch.is_grad_enabled()
        assert_allowed(images, attacked, threat)
        assert torch.equal(images, before)
        assert torch.equal(model.weight, weight)
        assert model.weight.grad is None
        assert not model.training
        assert not attacked.requires_grad
        assert not images.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        if not isinstance(attack, NoAttack):
            assert not torch.equal(attacked, images)

    @pytest.mark.parametrize(("attack", "norm"), BOUNDED, ids=name)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_eps_zero_changes_nothing_to_the_last_bit(self, attack: Attack, norm: Norm, dtype: torch.dtype) -> None:
        model, images = linear(2, 3).to(dtype), images_near(0.5, 0.5, 9).to(dtype)
        attacked = attack.perturb(model, images, torch.arange(9) % 3, Threat(norm, 0.0), streams(9))
        assert torch.equal(attacked, images)

    @pytest.mark.parametrize(("attack", "norm"), BOUNDED, ids=name)
    @pytest.mark.parametrize("eps", [0.01, 1.0, 30.0])
    def test_float32_stays_in_the_ball_of_large_images(self, attack: Attack, norm: Norm, eps: float) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(4, 3, 32, 32, generator=generator)
        weight = torch.randn(3, 3072, generator=generator)
        model = Linear(weight, -weight.sum(dim=1) / 2).eval()
        attacked = attack.perturb(model, images, torch.arange(4) % 3, Threat(norm, eps), streams(4))
        assert_allowed(images, attacked, Threat(norm, eps))

    @pytest.mark.parametrize(("attack", "threat"), EVERY, ids=name)
    def test_a_classifier_without_gradient_keeps_its_decision(self, attack: Attack, threat: Threat) -> None:
        model = Constant(torch.zeros(3, 48).double(), torch.tensor([1.0, 0.0, 0.0]).double()).eval()
        images = images_near(0.5, 0.5, 6)
        attacked = attack.perturb(model, images, torch.zeros(6, dtype=torch.int64), threat, streams(6))
        assert_allowed(images, attacked, threat)
        assert bool((model.predict(attacked) == 0).all())

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_a_gradient_of_zero_gives_no_step(self, norm: Norm) -> None:
        flat = Linear(torch.zeros(3, 48).double(), torch.zeros(3).double()).eval()
        images = images_near(0.5, 0.5, 6)
        labels = torch.zeros(6, dtype=torch.int64)
        assert torch.equal(FGM().perturb(flat, images, labels, Threat(norm, 0.5), streams(6)), images)
        calm = PGD(random_start=False)
        assert torch.equal(calm.perturb(flat, images, labels, Threat(norm, 0.5), streams(6)), images)

    def test_tiny_gradients_count_in_full(self) -> None:
        weight = 1e-30 * torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
        model = Linear(weight, torch.zeros(2)).eval()
        images = torch.full((1, 3, 4, 4), 0.5)
        for norm in ("linf", "l2", "l1"):
            attacked = FGM().perturb(model, images, torch.tensor([0]), Threat(norm, 0.1), streams(1))
            assert float(norms(attacked - images, norm)) == pytest.approx(0.1, rel=1e-5)

    @pytest.mark.parametrize(("attack", "threat"), EVERY, ids=name)
    def test_batch_and_order_change_nothing(self, attack: Attack, threat: Threat) -> None:
        count = 130
        model, images = linear(11, 3), images_near(0.5, 0.5, count)
        labels, rng = torch.arange(count) % 3, streams(count)
        whole = attack.perturb(model, images, labels, threat, rng)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        for size in (1, 7, 128):
            parts = order[:21].split(size) if size < 21 else order.split(size)
            for index in parts:
                part = attack.perturb(model, images[index], labels[index], threat, rng[index])
                torch.testing.assert_close(part, whole[index], rtol=0, atol=1e-12)
                assert torch.equal(model.predict(part), model.predict(whole[index]))

    def test_streams_decide_what_is_drawn(self) -> None:
        model, images, labels = linear(2, 3), images_near(0.5, 0.3, 4), torch.arange(4) % 3
        for attack, threat in EVERY:
            one, same, other = (attack.perturb(model, images, labels, threat, streams(4, seed)) for seed in (0, 0, 1))
            assert torch.equal(one, same)
            draws = not isinstance(attack, NoAttack | FGM | NoiseOptimization) and attack != PGD(
                random_start=False, early_stop=False
            )
            assert torch.equal(one, other) == (not draws), attack


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

    @pytest.mark.parametrize(("attack", "threat"), EVERY, ids=name)
    def test_announced_passes_are_enough(self, attack: Attack, threat: Threat) -> None:
        model = Counting.of(linear(13, 3), 8)
        attack.perturb(model, images_near(0.5, 0.3, 8), torch.arange(8) % 3, threat, streams(8))
        forwards, backwards = attack.passes(3)
        assert float(model.forwards.max()) <= forwards
        assert float(model.backwards.max()) <= backwards

    @pytest.mark.parametrize(("attack", "threat"), EVERY, ids=name)
    def test_white_box_attacks_and_only_they_use_gradients(self, attack: Attack, threat: Threat) -> None:
        model = Counting.of(linear(13, 3), 8)
        attack.perturb(model, images_near(0.5, 0.3, 8), torch.arange(8) % 3, threat, streams(8))
        assert (float(model.backwards.max()) > 0) == attack.white_box


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
    @pytest.mark.parametrize("restarts", [1, 3])
    def test_an_iterate_that_fooled_is_not_walked_away_from(self, early_stop: bool, restarts: int) -> None:
        model, images = Band().eval(), torch.full((3, 3, 4, 4), 0.5, dtype=torch.float64)
        labels = torch.zeros(3, dtype=torch.int64)
        attack = PGD(steps=10, rel_step=0.25, random_start=False, early_stop=early_stop, restarts=restarts)
        attacked = attack.perturb(model, images, labels, Threat("linf", 0.4), streams(3))
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


def test_every_attack_is_registered() -> None:
    expected = {
        "none": ("none",),
        "gaussian-noise": ("none", "l2"),
        "uniform-noise": ("linf",),
        "color-jitter": ("none",),
        "rotation": ("none",),
        "pixel-corruption": ("none",),
        "perturbation": ("none",),
        "fgsm": ("linf", "l2", "l1"),
        "fgm": ("linf", "l2", "l1"),
        "pgd": ("linf", "l2", "l1"),
        "noise-optimization": ("l1",),
    }
    entries = Registry(installed=False).entries("attack")
    assert {key: entries[key].mark.norms for key in expected} == expected


def test_fgsm_is_the_steepest_step_of_every_norm() -> None:
    fgsm = Registry(installed=False).entries("attack")["fgsm"]
    assert fgsm.cls.make(fgsm.mark.preset, "fgsm") == FGM()
