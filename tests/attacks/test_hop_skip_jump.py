"""HopSkipJump against closed forms on linear models in float64, seen through their decisions alone."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import SIZE, Constant, Linear, assert_allowed, distances, images_near, linear, norms, numbers, streams
from torch import Tensor, nn

from robbench.attacks.hop_skip_jump import HopSkipJump, _directions
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle

QUICK = HopSkipJump(iterations=4, initial_queries=30)


class OneHot(Linear):
    """The same decisions, told by scores whose gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(super().forward(images).argmax(dim=1), self.num_classes).to(images.dtype)


class Silent(Linear):
    """The same decisions, of which the scores tell nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), self.num_classes, dtype=images.dtype)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), super().forward(images).argmax(dim=1)


class WrongOnce(Constant):
    """Says class 1 to one of the images that it is asked about, and class 0 to all others."""

    def __init__(self, query: int) -> None:
        super().__init__(torch.zeros(2, SIZE), torch.tensor([1.0, 0.0]))
        self.query, self.asked = query, 0

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        numbered = self.asked + torch.arange(len(images))
        self.asked += len(images)
        return self(images), (numbered == self.query).long()


def far(count: int, labels: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """Gray images of one class, at some distance from the other one, to which half of all noise belongs."""
    model = linear(3, 2)
    toward = model.weight[labels] - model.weight[1 - labels]
    images = images_near(0.5, 0.02, count) + 0.2 * (toward / toward.norm()).reshape(3, 4, 4)
    return model, images, torch.full((count,), labels)


class TestClosedForms:
    @pytest.mark.parametrize(("norm", "tolerance"), [("l2", 0.02), ("linf", 0.1)])
    def test_two_classes(self, norm: Norm, tolerance: float) -> None:
        model, images = linear(3, 2), images_near(0.5, 0.05, 8)
        labels = model.predict(images)
        attacked = HopSkipJump().perturb(model, images, labels, Threat(norm), streams(8))
        assert_allowed(images, attacked, Threat(norm))
        assert bool((model.predict(attacked) != labels).all())
        ratio = norms(attacked - images, norm) / distances(model, images, labels, norm).amin(dim=1)
        assert float(ratio.min()) >= 1 - 1e-9
        assert float(ratio.max()) < 1 + tolerance

    @pytest.mark.parametrize(("norm", "tolerance"), [("l2", 0.02), ("linf", 0.1)])
    def test_four_classes(self, norm: Norm, tolerance: float) -> None:
        model, images = linear(3, 4), images_near(0.5, 0.05, 8)
        labels = model.predict(images)
        attacked = HopSkipJump().perturb(model, images, labels, Threat(norm), streams(8))
        each, decisions = distances(model, images, labels, norm), model.predict(attacked)
        assert bool((decisions != labels).all())
        sizes, nearest = norms(attacked - images, norm), each.amin(dim=1)
        assert bool((sizes >= nearest * (1 - 1e-9)).all())
        # It follows the boundary that it has met, which is not always that of the nearest class.
        assert bool((sizes < (1 + tolerance) * each.gather(1, decisions[:, None]).squeeze(1)).all())
        assert float((sizes < 1.1 * nearest).double().mean()) > 0.6

    def test_more_iterations_never_end_farther_away(self) -> None:
        model, images, labels = far(8)
        sizes = [
            norms(HopSkipJump(iterations=n).perturb(model, images, labels, Threat("l2"), streams(8)) - images, "l2")
            for n in (1, 3, 6)
        ]
        assert bool((sizes[1] <= sizes[0]).all() and (sizes[2] <= sizes[1]).all())
        assert float(sizes[2].mean()) < 0.9 * float(sizes[0].mean())


class TestDecisions:
    @pytest.mark.parametrize("norm", ["l2", "linf"])
    @pytest.mark.parametrize("kind", [OneHot, Silent])
    def test_nothing_but_decisions_matters(self, kind: type[Linear], norm: Norm) -> None:
        model, images, labels = far(4)
        other = kind(model.weight.data, model.bias.data).eval()
        found = QUICK.perturb(other, images, labels, Threat(norm), streams(4))
        assert torch.equal(found, QUICK.perturb(model, images, labels, Threat(norm), streams(4)))
        assert bool((model.predict(found) != labels).all())

    def test_no_gradient_is_asked_for(self) -> None:
        model, images, labels = far(4)
        oracle = Oracle(model.requires_grad_(True), 4)
        found = QUICK.perturb(oracle, images, labels, Threat("l2"), streams(4))
        assert not found.requires_grad
        assert float(oracle.backwards.max()) == 0

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_already_wrong_ones_are_left_alone_after_one_pass(self, norm: Norm) -> None:
        model, images, labels = far(6)
        labels[:3] = 1
        oracle = Oracle(model, 6)
        attacked = QUICK.perturb(oracle, images, labels, Threat(norm), streams(6))
        assert torch.equal(attacked[:3], images[:3])
        assert bool((attacked[3:] != images[3:]).flatten(1).any(dim=1).all())
        assert oracle.forwards[:3].tolist() == [1] * 3

    def test_where_no_noise_misleads_the_images_come_back(self) -> None:
        model, images = (
            Oracle(Constant(numbers(1, 3, SIZE), torch.eye(3).double()[0]).eval(), 5),
            images_near(0.5, 0.5, 5),
        )
        attack = HopSkipJump(starts=13)
        found = attack.perturb(model, images, torch.zeros(5, dtype=torch.int64), Threat("l2"), streams(5))
        assert torch.equal(found, images)
        assert model.forwards.tolist() == [1 + 13] * 5

    def test_images_that_noise_does_not_mislead_do_not_hold_up_the_others(self) -> None:
        model, images, labels = far(6)
        model.bias.data[0] -= 15  # all noise is of class 1 now
        slope = model.weight[0] - model.weight[1]
        images[:3] = 0.5 + 0.4 * slope.sign().reshape(3, 4, 4)
        labels = model.predict(images)
        assert labels.tolist() == [0] * 3 + [1] * 3
        attacked = QUICK.perturb(model, images, labels, Threat("l2"), streams(6))
        assert (model.predict(attacked) != labels).tolist() == [True] * 3 + [False] * 3
        assert torch.equal(attacked[3:], images[3:])


class TestContract:
    @pytest.mark.parametrize("shape", [(3, 5, 5), (1, 1, 2)])
    def test_directions_are_equally_wide_in_all_directions(self, shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        drawn = _directions(streams(1000), 0, 8, torch.zeros(1000, *shape, dtype=torch.float64))
        assert drawn.shape == (1000, 8, *shape)
        flat = drawn.flatten(0, 1).flatten(1)
        torch.testing.assert_close(flat.norm(dim=1), torch.ones(8000).double())
        assert float(flat.mean(dim=0).abs().max()) < 5 / (8000 * size) ** 0.5
        torch.testing.assert_close(flat.T @ flat / 8000 * size, torch.eye(size).double(), rtol=0, atol=0.07)
        assert not torch.equal(drawn, _directions(streams(1000), 8, 8, torch.zeros(1000, *shape).double()))

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_passes_stay_within_what_is_announced(self, norm: Norm) -> None:
        model, images, labels = far(6)
        for attack in (QUICK, HopSkipJump(iterations=1, initial_queries=2, starts=20)):
            oracle = Oracle(model, 6)
            attack.perturb(oracle, images, labels, Threat(norm), streams(6))
            queries = sum(int(attack.initial_queries * t**0.5) for t in range(1, attack.iterations + 1))
            assert queries < float(oracle.forwards.min())
            assert float(oracle.forwards.max()) <= attack.passes(2)[0]

    def test_announced_passes_are_reached_where_only_the_last_start_misleads(self) -> None:
        attack, images = HopSkipJump(iterations=3, initial_queries=10, starts=12), images_near(0.5, 0.5, 1)
        model = Oracle(WrongOnce(12).eval(), 1)
        attack.perturb(model, images, torch.zeros(1, dtype=torch.int64), Threat("l2"), streams(1))
        assert (model.forwards.tolist(), model.backwards.tolist()) == ([attack.passes(2)[0]], [0])

    @pytest.mark.parametrize(
        ("threat", "reason"), [(Threat("l2", 0.5), "no eps"), (Threat("l2", None, True), "targeted")]
    )
    def test_what_it_cannot_do_is_refused(self, threat: Threat, reason: str) -> None:
        assert reason in str(QUICK.refusal(threat, 10))
        assert QUICK.refusal(Threat("linf"), 2) is None
