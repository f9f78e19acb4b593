"""Auto-PGD against closed forms and a plain transcription of its algorithm; its losses and its L1 projection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import (
    SHAPE,
    SIZE,
    Linear,
    assert_allowed,
    assert_optimal,
    distances,
    images_near,
    linear,
    margins,
    norms,
    numbers,
    streams,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robbench.attacks._apgd_state import HalvingAscent, SparseAscent, checkpoints, sparse_step
from robbench.attacks._gradients import steepest_step
from robbench.attacks._losses import dlr, dlr_towards, gain, gain_towards, margin, margin_towards
from robbench.attacks._projections import project_l1_box
from robbench.attacks.apgd import APGD
from robbench.core.attack import Loss
from robbench.core.threat_model import Norm, Threat

BALLS: list[Norm] = ["linf", "l2", "l1"]
LOSSES: list[Loss] = ["ce", "margin", "dlr"]
seeds = st.integers(0, 2**31)


def wavy(images: Tensor) -> Tensor:
    rows = images.flatten(1)
    return (torch.sin(30 * rows) * torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype)).sum(dim=1)


class TestLosses:
    scores = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]], dtype=torch.float64)
    labels, targets = torch.tensor([0, 2]), torch.tensor([3, 1])

    def test_values_by_hand(self) -> None:
        assert margin(self.scores, self.labels).tolist() == [-1, 1]
        assert dlr(self.scores, self.labels).tolist() == [-1 / 3, 1 / 3]
        assert margin_towards(self.scores, self.labels, self.targets).tolist() == [-4, -2]
        assert dlr_towards(self.scores, self.labels, self.targets).tolist() == [-4 / 3.5, -2 / 3.5]
        entropy = torch.exp(self.scores).sum(dim=1).log() - self.scores[[0, 1], self.labels]
        torch.testing.assert_close(gain("ce", self.labels, False)(self.scores), entropy)
        reached = self.scores[[0, 1], self.targets] - torch.exp(self.scores).sum(dim=1).log()
        torch.testing.assert_close(gain("ce", self.targets, True)(self.scores), reached)

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
    def test_ratios_change_neither_with_scale_nor_with_shift(self, seed: int, scale: float, shift: float) -> None:
        scores, labels = numbers(seed, 5, 6), torch.arange(5)
        torch.testing.assert_close(dlr(scale * scores + shift, labels), dlr(scores, labels))
        targets = (labels + 1) % 6
        moved = dlr_towards(scale * scores + shift, labels, targets)
        torch.testing.assert_close(moved, dlr_towards(scores, labels, targets))

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("classes", [2, 3, 4, 10])
    def test_signs_say_who_wins_and_the_ratios_give_way_to_margins(self, loss: Loss, classes: int) -> None:
        scores, labels = numbers(0, 40, classes), torch.arange(40) % classes
        left, reached = (gain(loss, labels, targeted)(scores) for targeted in (False, True))
        if loss != "ce":
            assert torch.equal(left > 0, scores.argmax(dim=1) != labels)
            assert torch.equal(reached > 0, scores.argmax(dim=1) == labels)
        if loss == "dlr":
            assert torch.equal(left, margin(scores, labels)) == (classes < 3)
            assert torch.equal(reached, -margin(scores, labels)) == (classes < 4)
            targets = (labels + 1) % classes
            overtaken = gain_towards(loss, labels, targets)(scores)
            assert torch.equal(overtaken, margin_towards(scores, labels, targets)) == (classes < 4)

    @pytest.mark.parametrize("classes", [2, 3, 4, 10])
    def test_equal_scores_have_finite_values_and_gradients(self, classes: int) -> None:
        labels = torch.arange(3) % classes
        for loss in LOSSES:
            other = (labels + 1) % classes
            for function in (gain(loss, labels, False), gain(loss, labels, True), gain_towards(loss, labels, other)):
                scores = torch.ones(3, classes, requires_grad=True)
                values = function(scores)
                values.sum().backward()
                assert scores.grad is not None
                assert bool(values.isfinite().all() & scores.grad.isfinite().all())


class TestL1Ball:
    @settings(max_examples=60, deadline=None)
    @given(seeds, st.floats(0.001, 60), st.floats(0.01, 10), st.sampled_from([0.0, 0.3, 0.5]))
    def test_no_point_of_ball_and_box_is_nearer(self, seed: int, eps: float, scale: float, room: float) -> None:
        images, change = images_near(0.5, room, 4, seed), scale * numbers(seed + 1, 4, *SHAPE)
        found = project_l1_box(images, change, eps)
        assert_allowed(images, found, Threat("l1", eps))
        # The nearest point of a convex set is the one from which no other lies in the direction of what is left.
        left = images + change - found
        furthest = images + steepest_step(images, left, "l1", eps)
        assert float((left * (furthest - found)).flatten(1).sum(dim=1).max()) <= 1e-9

    def test_points_inside_stay_and_eps_zero_gives_the_images(self) -> None:
        images, change = images_near(0.5, 0.1, 3), 0.001 * numbers(2, 3, *SHAPE)
        torch.testing.assert_close(project_l1_box(images, change, 1.0), images + change, rtol=0, atol=1e-15)
        assert torch.equal(project_l1_box(images, change, 0.0), images)

    @pytest.mark.parametrize("eps", [0.1, 5.0, 40.0])
    def test_float32_keeps_to_large_balls(self, eps: float) -> None:
        images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        change = numbers(3, 3, 3, 32, 32).float()
        assert_allowed(images, project_l1_box(images, change, eps), Threat("l1", eps))

    def test_steps_move_the_steepest_values(self) -> None:
        gradient = torch.tensor([[3.0, -2.0, 1.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
        step = sparse_step(gradient, torch.tensor([2.7, 3.0]))
        torch.testing.assert_close(step, torch.tensor([[0.5, -0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))


class TestOptimality:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("targets", [0, 9])
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("linf", 0.7), ("l2", 0.4), ("l1", 0.4)])
    def test_reaches_the_best_on_a_linear_model(self, loss: Loss, targets: int, norm: Norm, eps: float) -> None:
        attack = APGD(loss=loss, steps=40, targets=targets, early_stop=False)
        assert_optimal(attack, norm, eps)
        if not targets:
            assert_optimal(attack, norm, eps, targeted=True)

    @pytest.mark.parametrize("norm", BALLS)
    @pytest.mark.parametrize("classes", [3, 5])
    @pytest.mark.parametrize("attack", [APGD(steps=50), *(APGD(loss, 50, targets=4) for loss in LOSSES)], ids=str)
    def test_fools_linear_models_from_their_distance_on(self, norm: Norm, classes: int, attack: APGD) -> None:
        model, images = linear(9, classes), images_near(0.5, 0.02, 24)
        labels = model.predict(images)
        distance = distances(model, images, labels, norm).amin(dim=1)
        eps = float(distance.median())
        attacked = attack.perturb(model, images, labels, Threat(norm, eps), streams(24))
        assert_allowed(images, attacked, Threat(norm, eps))
        fooled = model.predict(attacked) != labels
        assert not bool((fooled & (distance > eps * (1 + 1e-9))).any())
        assert bool(fooled.any())
        # Each target makes the problem one of two classes, which has no other maxima.
        assert not attack.targets or attack.loss == "ce" or bool(fooled[distance < 0.999 * eps].all())

    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize("norm", BALLS)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_targets_are_reached_with_any_number_of_classes(self, loss: Loss, norm: Norm, classes: int) -> None:
        model, images = linear(7, classes), images_near(0.5, 0.4, 12)
        targets = (model.predict(images) + 1) % classes
        threat = Threat(norm, {"linf": 0.3, "l2": 2.0, "l1": 12.0}[norm], targeted=True)
        attacked = APGD(loss=loss, steps=30).perturb(model, images, targets, threat, streams(12))
        assert_allowed(images, attacked, threat)
        assert torch.equal(model.predict(attacked), targets)


def transcribed(start: Tensor, center: Tensor, norm: Norm, eps: float, steps: int) -> tuple[Tensor, list[float]]:
    """Algorithm 1 for one sample, line by line and away from the box: its best point and the step sizes."""
    # As the paper has it: w_j = ceil(p_j N).
    marks, shares = [0], [0.0, 0.22]
    while round(shares[-1], 9) <= 1:
        marks.append(int(np.ceil(round(shares[-1] * steps, 9))))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(wavy(x).sum(), x)[0]

    def onto(x: Tensor) -> Tensor:
        change = x - center
        if norm == "linf":
            return center + change.clamp(-eps, eps)
        return center + change * min(1.0, eps / float(change.norm()))

    def ahead(x: Tensor) -> Tensor:
        g = slope(x)
        return onto(x + eta * (g.sign() if norm == "linf" else g / g.norm()))

    eta, halved, sizes = 2 * eps, False, []
    points, values = [start], [float(wavy(start))]
    best, top = start, values[0]
    noted, rises = top, 0
    x, before = start, start
    for k in range(steps):
        z = ahead(x)
        moved = z if k == 0 else onto(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x = x, moved
        value = float(wavy(x))
        rises += value > values[-1]
        if value > top:
            best, top = x, value
        values.append(value)
        points.append(x)
        if k + 1 in marks:
            window = k + 1 - marks[marks.index(k + 1) - 1]
            halved = rises < 0.75 * window or (not halved and top == noted)
            noted, rises = top, 0
            if halved:
                eta, x = eta / 2, best
                values[-1] = top
        sizes.append(eta)
    return best, sizes


class TestAlgorithm:
    def test_checkpoints_are_those_of_the_paper(self) -> None:
        assert checkpoints(100) == (0, 22, 41, 57, 70, 80, 87, 93, 99)
        for steps in (1, 2, 3, 7, 20):
            assert checkpoints(steps)[0] == 0
            assert all(0 < mark <= steps for mark in checkpoints(steps)[1:])

    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3)])
    @pytest.mark.parametrize("steps", [20, 50])
    def test_every_sample_goes_the_way_of_the_paper(self, norm: Norm, eps: float, steps: int) -> None:
        count = 6
        center = images_near(0.5, 0.1, count)
        change = 0.3 * eps * numbers(4, count, *SHAPE).clamp(-1, 1) / (1 if norm == "linf" else SIZE**0.5)
        ascent, sizes = HalvingAscent.begin(center, change, norm, eps, steps), []
        for _ in range(steps + 1):
            point = ascent.proposal.clone().requires_grad_()
            gradient = torch.autograd.grad(wavy(point).sum(), point)[0]
            ascent = ascent.tell(wavy(ascent.proposal), gradient)
            sizes.append(ascent.size)
        for sample in range(count):
            one = center[sample : sample + 1]
            best, expected = transcribed(one + change[sample : sample + 1], one, norm, eps, steps)
            torch.testing.assert_close(ascent.best.images[sample], best[0], rtol=0, atol=1e-6)
            assert [float(size[sample]) for size in sizes[1:]] == pytest.approx(expected)
        # Samples differ in where they halve their steps, so their states are their own.
        assert len({tuple(float(size[sample]) for size in sizes) for sample in range(count)}) > 1

    def test_steps_are_halved_for_those_alone_that_do_not_rise(self) -> None:
        images = images_near(0.5, 0.1, 2)
        ascent = HalvingAscent.begin(images, torch.zeros_like(images), "linf", 0.1, 100)
        for step in range(23):
            value = torch.tensor([float(step), float(step % 2)], dtype=torch.float64)
            ascent = ascent.tell(value, torch.ones_like(images))
        assert ascent.size.tolist() == pytest.approx([0.2, 0.1])
        assert ascent.halved.tolist() == [False, True]
        kept = ascent[torch.tensor([1])]
        assert kept.size.tolist() == pytest.approx([0.1])
        assert torch.equal(kept.best.value, ascent.best.value[1:])

    def test_l1_spends_its_steps_in_balls_that_shrink(self) -> None:
        images, gradient = images_near(0.5, 0.1, 2), numbers(5, 2, *SHAPE)
        ascent = SparseAscent.begin(images, numbers(6, 2, *SHAPE).clamp(-0.001, 0.001), 0.4, 100)
        reached = []
        for step in range(101):
            size = norms(ascent.proposal - images, "l1")
            reached.append(float(size.max()))
            assert ascent.allowed == (step >= 60)
            ascent = ascent.tell((gradient * (ascent.proposal - images)).flatten(1).sum(dim=1), gradient)
        assert max(reached[:30]) == pytest.approx(1.2)
        assert max(reached[30:60]) == pytest.approx(0.8)
        assert max(reached[60:]) == pytest.approx(0.4)
        assert torch.equal(norms(ascent.best.images - images, "l0"), torch.ones(2).double())


class TestDecisions:
    def test_images_that_fool_are_kept_and_hard_decisions_count(self) -> None:
        class Band(Linear):
            """Class 1 in a band of margins, although the scores rise beyond it."""

            def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
                scores = self(images)
                gap = scores[:, 1] - scores[:, 0]
                return scores, ((gap > 0) & (gap < 1.5)).long()

        base = linear(3, 2)
        model, images = Band(base.weight, base.bias).eval(), images_near(0.5, 0.01, 12)
        labels = torch.zeros(12, dtype=torch.int64)
        attack = APGD("margin", steps=10, restarts=4)
        for variant in (attack, replace(attack, early_stop=False), replace(attack, targets=1)):
            attacked = variant.perturb(model, images, labels, Threat("linf", 0.05), streams(12))
            found = model.predict(attacked) == 1
            assert int(found.sum()) >= 6
            wide = -margins(base, attacked, labels)
            assert bool(((wide > 0) & (wide < 1.5))[found].all())


def test_losses_and_refusals() -> None:
    assert [attack.losses for attack in (APGD(), APGD("dlr"), APGD("dlr", targets=9))] == [("ce",), ("dlr",), ("dlr",)]
    assert APGD().refusal(Threat("linf", 0.1, targeted=True), 3) is None
    assert "targets=0" in str(APGD(targets=2).refusal(Threat("linf", 0.1, targeted=True), 3))
    assert APGD("dlr", targets=9).passes(10) == (910, 900)
    assert APGD("dlr", targets=9).passes(3) == (203, 200)


def test_the_soft_margin_has_the_direction_of_cross_entropy_and_no_end_of_it() -> None:
    scores = torch.tensor([[2.0, 1.0, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0])
    (steep,) = torch.autograd.grad(gain("ce", labels, targeted=False)(scores).sum(), scores)
    (soft,) = torch.autograd.grad(gain("soft-margin", labels, targeted=False)(scores).sum(), scores)
    torch.testing.assert_close(soft / soft.norm(), steep / steep.norm())
    far = (1e4 * scores.detach()).float().requires_grad_()
    (saturated,) = torch.autograd.grad(gain("ce", labels, targeted=False)(far).sum(), far)
    (soft,) = torch.autograd.grad(gain("soft-margin", labels, targeted=False)(far).sum(), far)
    assert not saturated.any()
    torch.testing.assert_close(soft, torch.tensor([[-1.0, 1.0, 0.0, 0.0]]))
