"""Gradients averaged over the draws of a random model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from closed_forms import Linear, assert_allowed, images_near, linear, streams
from torch import Tensor

from robbench.attacks._expectation import drawing_apart, mean_over_draws
from robbench.attacks.apgd import APGD
from robbench.attacks.autoattack import AutoAttack
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm, Threat
from robbench.defenses.smoothing import Smoothed
from robbench.evaluation.query_counter import Oracle

COUNT = 24


class Jittery(Linear):
    """A linear model that adds other weights, of mean zero, at every draw.

    Its expected scores are those of the linear model; the gradient of a single draw tells next to nothing of them.
    """

    size = 2.0
    stream = 0

    def redraw(self, stream: int) -> None:
        self.stream = stream

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.stream & (2**62 - 1))
        jitter = torch.randn(self.weight.shape, generator=generator, dtype=self.weight.dtype)
        return super().forward(images) + (images - 0.5).flatten(1) @ (self.size * jitter).T


def jittery(seed: int, classes: int) -> Jittery:
    plain = linear(seed, classes)
    return Jittery(plain.weight, plain.bias).eval()


class TestMean:
    def test_of_gradients_values_and_what_fools(self) -> None:
        model, images = jittery(3, 3), images_near(0.5, 0.3, 5)
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def question() -> tuple[Tensor, Tensor, Tensor]:
            scores = model(images)
            seen.append((scores[:, :1, None, None] * images, scores[:, 0], scores.argmax(dim=1) == 0))
            return seen[-1]

        gradient, value, fooled = mean_over_draws(model, 9, ("a", 1), question)
        assert len(seen) == 9
        torch.testing.assert_close(gradient, torch.stack([part[0] for part in seen]).mean(dim=0))
        torch.testing.assert_close(value, torch.stack([part[1] for part in seen]).mean(dim=0))
        assert torch.equal(fooled, torch.stack([part[2] for part in seen]).double().mean(dim=0) > 0.5)
        assert len({float(part[1][0]) for part in seen}) == 9
        again = mean_over_draws(model, 9, ("a", 1), question)
        assert torch.equal(again[1], value)
        assert not torch.equal(mean_over_draws(model, 9, ("a", 2), question)[1], value)

    @pytest.mark.parametrize(("draws", "calls"), [(1, 1), (16, 1), (17, 2), (20, 2), (33, 3)])
    def test_a_model_that_averages_by_itself_is_asked_less_often(self, draws: int, calls: int) -> None:
        model, zeros, asked = Smoothed(linear(3, 3), 0.1, 16, 100).eval(), torch.zeros(2), []

        def question() -> tuple[Tensor, Tensor, Tensor]:
            asked.append(model.stream)
            return zeros, zeros, zeros > 0

        mean_over_draws(model, draws, "a", question)
        assert len(set(asked)) == len(asked) == calls

    def test_the_copy_shares_weights_and_draws_for_itself(self) -> None:
        inner = Smoothed(linear(3, 3), 0.1, 4, 8).eval()
        model = Oracle(Smoothed(inner, 0.1, 2, 3).eval(), 2)
        copy = drawing_apart(model)
        assert all(one is other for one, other in zip(model.parameters(), copy.parameters(), strict=True))
        copy.redraw(5)
        assert inner.stream == 0
        copy.subset(torch.tensor([1]))(images_near(0.5, 0.3, 1))
        assert model.forwards.tolist() == [0, 8]


class TestAPGD:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_on_a_model_that_draws_nothing_it_is_the_same(self, norm: Norm) -> None:
        model, images = linear(13, 4), images_near(0.5, 0.3, COUNT)
        labels, threat = model.predict(images), Threat(norm, {"linf": 0.02, "l2": 0.15, "l1": 0.6}[norm])
        attack = APGD("margin", steps=8, early_stop=False)
        once, twice = (
            one.perturb(model, images, labels, threat, streams(COUNT)) for one in (attack, replace(attack, eot=2))
        )
        assert torch.equal(once, twice)

    def test_averages_find_what_single_draws_do_not(self) -> None:
        model, plain = jittery(13, 4), linear(13, 4)
        images = images_near(0.5, 0.2, COUNT)
        labels, threat = plain.predict(images), Threat("linf", 0.01)
        margins = []
        for draws in (1, 20):
            attack = APGD("margin", steps=20, early_stop=False, eot=draws)
            attacked = attack.perturb(model, images, labels, threat, streams(COUNT))
            assert_allowed(images, attacked, threat)
            scores = plain(attacked)  # which are those that the draws have in the mean
            others = scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
            margins.append(float((others - scores.gather(1, labels[:, None])[:, 0]).mean()))
        best = APGD("margin", steps=20, early_stop=False).perturb(plain, images, labels, threat, streams(COUNT))
        scores = plain(best)
        others = scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        most = float((others - scores.gather(1, labels[:, None])[:, 0]).mean())
        assert margins[0] < margins[1] < most
        assert most - margins[1] < 0.3 * (most - margins[0])

    def test_batch_and_order_change_nothing_and_the_model_draws_on_as_before(self) -> None:
        model, images = Smoothed(linear(13, 4), 0.1, 4, 20).eval(), images_near(0.5, 0.3, 9)
        labels, threat = model.predict(images), Threat("linf", 0.02)
        attack = APGD(steps=3, eot=8, restarts=2)
        whole = attack.perturb(model, images, labels, threat, streams(9))
        assert model.stream == 0
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        for index in (*order[:2].split(1), order):
            part = attack.perturb(model, images[index], labels[index], threat, streams(9)[index])
            torch.testing.assert_close(part, whole[index], rtol=0, atol=1e-12)

    def test_passes_are_counted_in_draws(self) -> None:
        attack, images = APGD(steps=3, eot=8, targets=2), images_near(0.5, 0.01, 6)
        forwards, backwards = attack.passes(4)
        for model, decided in ((linear(13, 4), 0), (Smoothed(linear(13, 4), 0.01, 4, 20).eval(), 20)):
            oracle = Oracle(model, 6)
            attack.perturb(oracle, images, model.predict(images), Threat("linf", 1e-4), streams(6))
            asked = [2 * 4 * 8, 2 * 3 * 8] if not decided else [2 * 4 * 2 * 4, 2 * 3 * 2 * 4]
            votes = decided * (1 + 2 * 4 * 2)
            assert oracle.forwards.tolist() == [model.draws + asked[0] + votes] * 6
            assert oracle.backwards.tolist() == [asked[1]] * 6
        assert (forwards, backwards) == (1 + 2 * 4 * 8, 2 * 3 * 8)

    def test_an_image_that_fools_by_luck_is_no_image_that_fools(self) -> None:
        class Coin(Classifier):
            """Predicts class 1 in a third of the draws, and always from 0.6 on in the first pixel."""

            num_classes, stream = 2, 0

            def redraw(self, stream: int) -> None:
                self.stream = stream

            def forward(self, images: Tensor) -> Tensor:
                first = images.flatten(1)[:, 0]
                return torch.stack([0 * first, first - 0.6], dim=1)

            def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
                scores = self(images)
                return scores, scores.argmax(dim=1) | (self.stream % 3 == 0)

            def embed(self, images: Tensor) -> Tensor:
                return images.flatten(1)

        images, labels = torch.full((4, 3, 4, 4), 0.5).double(), torch.zeros(4).long()
        attack = APGD("margin", steps=10, eot=20)
        for eps, reached in ((0.05, 0.55), (0.15, 0.65)):
            attacked = attack.perturb(Coin().eval(), images, labels, Threat("linf", eps), streams(4))
            assert attacked.flatten(1)[:, 0].tolist() == pytest.approx([reached] * 4)


def test_rand_on_a_random_model_beats_the_standard_ensembles_gradients() -> None:
    model, plain, images = jittery(13, 4), linear(13, 4), images_near(0.5, 0.2, 8)
    labels, threat = plain.predict(images), Threat("linf", 0.02)
    attacked = AutoAttack("rand").perturb(model, images, labels, threat, streams(8))
    assert_allowed(images, attacked, threat)
    single = APGD(steps=100).perturb(model, images, labels, threat, streams(8))
    left = [int((plain.predict(found) == labels).sum()) for found in (attacked, single)]
    assert left[0] < left[1]
    assert math.isfinite(float(attacked.sum()))
