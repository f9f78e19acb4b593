"""FAB against distances in closed form, its projections against independent solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import (
    Counting,
    Linear,
    assert_allowed,
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
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

from robbench.attacks._hyperplanes import onto_hyperplane
from robbench.attacks.fab import FAB, MinimalFAB
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm, Threat

BALLS: list[Norm] = ["linf", "l2", "l1"]
seeds = st.integers(0, 2**31)


class Decided(Classifier):
    """Scores say class 1 from 0.7 on in the first pixel, the hard decision from 0.705 on."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, 0]
        return torch.stack([0.7 - first, first - 0.7], dim=1)

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), (images.flatten(1)[:, 0] > 0.705).long()

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Plateau(Classifier):
    """Class 1 from 0.65 on in the first pixel; below 0.6 there is no slope."""

    num_classes = 2

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, 0]
        return torch.stack([torch.full_like(first, 0.05), (first - 0.6).clamp(min=0)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class TestProjection:
    @settings(max_examples=60, deadline=None)
    @given(seeds, st.sampled_from(BALLS), st.floats(0.001, 3.0))
    def test_agrees_with_an_independent_solver(self, seed: int, norm: Norm, scale: float) -> None:
        image = images_near(0.5, 0.5, 1, seed).flatten()[:8]
        slope = numbers(seed + 1, 8)
        slope[seed % 8] = 0.0
        value = scale * numbers(seed + 2, 1)
        change = onto_hyperplane(image[None, None], slope[None], value[None], norm).flatten()
        moved = image + change
        assert bool(((moved >= -1e-12) & (moved <= 1 + 1e-12)).all())
        x, w, v = image.numpy(), slope.numpy(), float(value)
        reach = float(np.where(w * v < 0, w * (1 - x), -w * x).sum())
        if abs(reach) <= abs(v):
            # No zero in the box: every pixel with a slope goes as far as it can.
            corner = np.where(w == 0, x, np.where(w * v < 0, 1.0, 0.0))
            np.testing.assert_allclose(moved.numpy(), corner, atol=1e-12)
            return
        assert float(change @ slope) == pytest.approx(-v, abs=1e-9)
        size = float(norms(change[None], norm))
        assert size == pytest.approx(smallest(x, w, v, norm), abs=1e-6 if norm == "l2" else 1e-9)

    @pytest.mark.parametrize("norm", BALLS)
    def test_several_starts_share_a_slope_and_stay_apart(self, norm: Norm) -> None:
        starts = torch.stack([images_near(0.5, 0.5, 5, seed) for seed in (1, 2)])
        slope, values = numbers(3, 5, 3, 4, 4), 3 * numbers(4, 2, 5)
        together = onto_hyperplane(starts, slope, values, norm)
        for i in range(2):
            for j in range(5):
                alone = onto_hyperplane(
                    starts[i : i + 1, j : j + 1], slope[j : j + 1], values[i : i + 1, j : j + 1], norm
                )
                torch.testing.assert_close(alone[0, 0], together[i, j], rtol=0, atol=1e-14)

    @pytest.mark.parametrize("norm", BALLS)
    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_slopes_of_any_size(self, norm: Norm, scale: float) -> None:
        image, slope = torch.full((1, 1, 4), 0.5), scale * torch.tensor([[4.0, -2.0, 1.0, 0.0]])
        change = onto_hyperplane(image, slope, scale * torch.tensor([[-1.0]]), norm)
        expected = {"linf": [1 / 7, -1 / 7, 1 / 7, 0], "l2": [4 / 21, -2 / 21, 1 / 21, 0], "l1": [1 / 4, 0, 0, 0]}[norm]
        torch.testing.assert_close(change.flatten(), torch.tensor(expected), atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("norm", BALLS)
    def test_no_slope_and_no_distance_give_no_change(self, norm: Norm) -> None:
        images, zeros = images_near(0.5, 0.5, 3)[None], torch.zeros(1, 3).double()
        assert not bool(onto_hyperplane(images, torch.zeros_like(images[0]), zeros + 1, norm).any())
        assert not bool(onto_hyperplane(images, numbers(1, *images.shape[1:]), zeros, norm).any())
        with pytest.raises(ValueError, match="l0"):
            onto_hyperplane(images, images[0], zeros, "l0")


def smallest(x: np.ndarray, w: np.ndarray, v: float, norm: Norm) -> float:
    """The least norm of a change within the box with ``w @ change == -v``, from SciPy."""
    bounds = list(zip(-x, 1 - x, strict=True))
    if norm == "l2":
        found = minimize(
            lambda d: d @ d,
            np.zeros_like(x),
            jac=lambda d: 2 * d,
            bounds=bounds,
            constraints=LinearConstraint(w, -v, -v),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return float(np.linalg.norm(found.x))
    # Over the change and its sizes, or their largest: |change| <= sizes.
    count, unit = len(x), np.eye(len(x))
    extra = unit if norm == "l1" else np.ones((count, 1))
    found = linprog(
        np.concatenate([np.zeros(count), np.ones(extra.shape[1])]),
        A_ub=np.block([[unit, -extra], [-unit, -extra]]),
        b_ub=np.zeros(2 * count),
        A_eq=np.concatenate([w, np.zeros(extra.shape[1])])[None],
        b_eq=[-v],
        bounds=bounds + [(0, None)] * extra.shape[1],
    )
    return float(found.fun)


class TestDistance:
    @pytest.mark.parametrize("targets", [9, 0])
    @pytest.mark.parametrize("classes", [2, 3, 10])
    @pytest.mark.parametrize("norm", BALLS)
    def test_reaches_the_distance_of_a_linear_model_and_never_less(
        self, norm: Norm, classes: int, targets: int
    ) -> None:
        model, images = linear(9, classes), images_near(0.5, 0.05, 24)
        labels = model.predict(images)
        distance = distances(model, images, labels, norm).amin(dim=1)
        attack = MinimalFAB(steps=10, targets=targets)
        attacked = attack.perturb(model, images, labels, Threat(norm), streams(24))
        assert_allowed(images, attacked, Threat(norm))
        assert bool((model.predict(attacked) != labels).all())
        share = norms(attacked - images, norm) / distance
        assert float(share.min()) >= 1 - 1e-9
        assert float(share.max()) <= 1 + 1e-5

    def test_reaches_the_distance_within_the_box(self) -> None:
        model, images = linear(4, 2), images_near(0.5, 0.5, 16)
        labels = model.predict(images)
        slope = (model.weight[1] - model.weight[0]).numpy()
        attacked = MinimalFAB().perturb(model, images, labels, Threat("linf"), streams(16))
        values = (model(images)[:, 1] - model(images)[:, 0]).numpy()
        flat = images.flatten(1).numpy()
        best = torch.tensor([smallest(x, slope, v, "linf") for x, v in zip(flat, values, strict=True)])
        free = distances(model, images, labels, "linf").amin(dim=1)
        assert float((best / free).max()) > 1.01, "the box does not come into play"
        share = norms(attacked - images, "linf") / best
        assert float(share.min()) >= 1 - 1e-6
        assert float(share.max()) <= 1.005

    @pytest.mark.parametrize("norm", BALLS)
    def test_fools_within_eps_what_is_nearer_than_eps_and_nothing_else(self, norm: Norm) -> None:
        model, images = linear(9, 3), images_near(0.5, 0.05, 60)
        labels = model.predict(images)
        distance = distances(model, images, labels, norm).amin(dim=1)
        threat = Threat(norm, float(distance.median()) * 1.001)
        attacked = FAB(steps=10).perturb(model, images, labels, threat, streams(60))
        assert_allowed(images, attacked, threat)
        fooled = model.predict(attacked) != labels
        assert torch.equal(fooled[distance < 0.999 * threat.radius], distance[distance < 0.999 * threat.radius] > 0)
        assert not bool(fooled[distance > threat.radius].any())
        assert 20 < int(fooled.sum()) < 40

    @pytest.mark.parametrize("norm", BALLS)
    def test_what_is_not_fooled_within_eps_comes_nearer_to_it(self, norm: Norm) -> None:
        model, images = linear(9, 3), images_near(0.5, 0.05, 12)
        labels = model.predict(images)
        threat = Threat(norm, float(distances(model, images, labels, norm).amin() / 2))
        attacked = FAB(steps=5).perturb(model, images, labels, threat, streams(12))
        assert_allowed(images, attacked, threat)
        assert bool((model.predict(attacked) == labels).all())
        torch.testing.assert_close(norms(attacked - images, norm), torch.full((12,), threat.radius).double())
        assert bool((margins(model, attacked, labels) < margins(model, images, labels)).all())

    def test_makes_for_the_likeliest_classes_first(self) -> None:
        # Class 1 scores higher than class 2, but class 2 is nearer.
        weight = torch.zeros(3, 48).double()
        weight[1, 0], weight[2, 1] = 1.0, 10.0
        model = Linear(weight, torch.tensor([1.0, 0.4, -4.6]).double()).eval()
        images, labels = torch.full((1, 3, 4, 4), 0.5).double(), torch.tensor([0])
        for targets, decision, distance in ((1, 1, 0.1), (2, 2, 0.06), (0, 2, 0.06)):
            found = MinimalFAB(targets=targets).perturb(model, images, labels, Threat("l1"), streams(1))
            assert model.predict(found).tolist() == [decision]
            assert float(norms(found - images, "l1")) == pytest.approx(distance, rel=1e-3)

    @pytest.mark.parametrize("norm", BALLS)
    def test_a_single_step_without_targets_makes_for_the_nearest_class(self, norm: Norm) -> None:
        model, images = linear(9, 10), images_near(0.5, 0.05, 100)
        labels = model.predict(images)
        ranked = distances(model, images, labels, norm)
        found = MinimalFAB(steps=1, targets=0).perturb(model, images, labels, Threat(norm), streams(100))
        likeliest = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
        assert torch.equal(model.predict(found), ranked.argmin(dim=1))
        assert int((ranked.argmin(dim=1) != likeliest).sum()) > 2

    @pytest.mark.parametrize("norm", BALLS)
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_reaches_targets(self, norm: Norm, classes: int) -> None:
        model, images = linear(7, classes), images_near(0.5, 0.05, 12)
        decided = model.predict(images)
        targets = (decided + 1) % classes
        found = MinimalFAB().perturb(model, images, targets, Threat(norm, None, targeted=True), streams(12))
        assert bool((model.predict(found) == targets).all())
        # The way to the target is at least as long as that to the plane between it and the decision.
        least = distances(model, images, decided, norm).gather(1, targets[:, None])[:, 0]
        share = norms(found - images, norm) / least
        assert float(share.min()) >= 1 - 1e-9
        assert float(share.median()) < {2: 1.0001, 3: 1.2, 10: 2.0}[classes]
        same = MinimalFAB().perturb(model, images, decided, Threat(norm, None, targeted=True), streams(12))
        assert torch.equal(same, images)

    def test_restarts_leave_plateaus(self) -> None:
        model, images, labels = Plateau().eval(), torch.full((16, 3, 4, 4), 0.5).double(), torch.zeros(16).long()
        sizes = []
        for restarts in (1, 2, 8):
            attack = MinimalFAB(steps=10, restarts=restarts)
            found = attack.perturb(model, images, labels, Threat("linf"), streams(16))
            assert torch.equal(model.predict(found) == 1, (found != images).flatten(1).any(dim=1))
            sizes.append(torch.where(model.predict(found) == 1, norms(found - images, "linf"), torch.inf))
        assert bool(sizes[0].isinf().all())
        assert 0 < int(sizes[1].isfinite().sum()) < 16
        assert bool((sizes[2] <= sizes[1]).all())
        assert int(sizes[2].isfinite().sum()) > int(sizes[1].isfinite().sum())
        assert float(sizes[2][sizes[2].isfinite()].max()) == pytest.approx(0.15, rel=0.01)

    def test_hard_decisions_count_rather_than_scores(self) -> None:
        model, images = Decided().eval(), torch.full((2, 3, 4, 4), 0.5).double()
        found = MinimalFAB().perturb(model, images, torch.zeros(2).long(), Threat("linf"), streams(2))
        assert bool((model.predict(found) == 1).all())
        assert float(norms(found - images, "linf").max()) < 0.21


class TestPasses:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_counted_passes(self, classes: int) -> None:
        plain, images = linear(13, classes), images_near(0.5, 0.3, 12)
        labels = plain.predict(images)
        labels[:3] = (labels[:3] + 1) % classes
        distance = distances(plain, images, labels, "l2").amin(dim=1)
        eps = float(distance[3:].sort().values[4]) * 1.05
        attack = FAB(steps=4, targets=4, restarts=2)
        model = Counting.of(plain, 12)
        attack.perturb(model, images, labels, Threat("l2", eps), streams(12))
        forwards, backwards = attack.passes(classes)
        assert FAB().gradient_steps == MinimalFAB().gradient_steps == 100
        assert (forwards, backwards) == (1 + 2 * min(4, classes - 1) * 11, 2 * min(4, classes - 1) * 4)
        assert model.forwards[:3].tolist() == [1] * 3
        assert model.backwards[:3].tolist() == [0] * 3
        far = distance > 1.05 * eps
        near = (distance < eps) & (torch.arange(12) >= 3)
        assert bool(far.any())
        assert int(near.sum()) >= 5
        # What is fooled in every run, but beyond eps, costs all that is announced.
        assert model.forwards[far].tolist() == [forwards] * int(far.sum())
        assert model.backwards[far].tolist() == [backwards] * int(far.sum())
        assert float(model.forwards[near].max()) < forwards
