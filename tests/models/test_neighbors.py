"""Nearest neighbors: the hard vote, the scores that stand in for it, what proves it, and FGM through the loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import assert_allowed, images_near, linear, numbers, streams
from galleries import clouds, neighbors, similarities
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from robbench.attacks.fgm import FGM
from robbench.attacks.metric_fgm import MetricFGM
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import fair_play
from robbench.models._neighbors import NeighborClassifier

# --- the hard vote


@pytest.mark.parametrize(("k", "classes"), [(1, 3), (5, 2), (11, 4), (20, 3)])
def test_the_hard_vote_is_that_of_scikit_learn(k: int, classes: int) -> None:
    gallery, labels = clouds(20, classes)
    model = neighbors(gallery, labels, k)
    images = numbers(7, 300, 6)
    oracle = KNeighborsClassifier(n_neighbors=k, metric="cosine").fit(gallery.numpy(), labels.numpy())
    votes = np.sort(oracle.predict_proba(images.numpy()), axis=1)
    clear = votes[:, -1] > votes[:, -2] + 1e-9
    assert clear.mean() > 0.6
    decided = model.predict(images).numpy()
    np.testing.assert_array_equal(decided[clear], oracle.predict(images.numpy())[clear])
    assert len(np.unique(decided)) == classes


def test_equal_votes_go_to_the_larger_summed_similarity() -> None:
    # Angles to the image at 0°: class 0 at 10° and 40°, class 1 at 20° and 21°; all four vote.
    degrees = torch.tensor([10.0, 40.0, 20.0, 21.0, 170.0, 175.0], dtype=torch.float64)
    gallery = torch.stack([torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    model = neighbors(gallery, labels, k=2)
    model.k = 4
    cosines = np.cos(np.deg2rad(degrees.numpy()))
    assert cosines[:2].sum() < cosines[2:4].sum()
    assert model.predict(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).tolist() == [1]
    assert neighbors(gallery, 1 - labels, k=2).predict(torch.tensor([[1.0, 0.0]]).double()).tolist() == [1]


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], [2, 1], [2, 0]])
def test_equal_votes_and_similarities_go_to_the_lower_class(labels: list[int]) -> None:
    gallery = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.1], [-1.0, -0.1]], dtype=torch.float64)
    rest = [c for c in range(4) if c not in labels]
    model = neighbors(gallery, torch.tensor(labels + rest), k=1)
    model.k = 2
    assert model.predict(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).tolist() == [min(labels)]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 4))
def test_the_hard_vote_is_a_plain_count(seed: int, k: int, classes: int) -> None:
    gallery, labels = clouds(8, classes, seed=seed)
    model = neighbors(gallery, labels, k)
    images = numbers(seed + 9, 5, 6)
    for row, decided in zip(similarities(model, images), model.predict(images).tolist(), strict=True):
        nearest = np.argsort(-row, kind="stable")[:k]
        of = [[row[j] for j in nearest if labels[j] == c] for c in range(classes)]
        ranked = sorted(range(classes), key=lambda c: (-len(of[c]), -sum(of[c]), c))
        assert decided == ranked[0]


def test_no_more_neighbors_vote_than_a_class_has_references() -> None:
    gallery, labels = clouds(7, 3)
    assert neighbors(gallery, labels, k=100).k == 7
    assert neighbors(gallery, labels, k=3).k == 3
    assert neighbors(gallery[:-2], labels[:-2], k=100).k == 5


# --- the smooth vote


@pytest.mark.parametrize("tau", [0.003, 0.1, 1.0])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_smooth_vote_is_its_formula(k: int, tau: float) -> None:
    gallery, labels = clouds(9, 3)
    model = neighbors(gallery, labels, k, tau)
    images = numbers(3, 10, 6)
    expected = np.zeros((10, 3))
    for i, row in enumerate(similarities(model, images)):
        ordered = sorted(row, reverse=True)
        threshold = (ordered[k - 1] + ordered[k]) / 2
        for j, similarity in enumerate(row):
            expected[i, labels[j]] += 1 / (1 + math.exp(min(700, -(similarity - threshold) / tau)))
    np.testing.assert_allclose(model(images).numpy(), np.log(expected + 1e-3), rtol=1e-9)
    scores, decisions = model.decide(images)
    assert torch.equal(scores, model(images))
    assert torch.equal(decisions, model.predict(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clear_vote_has_a_gradient_that_an_attack_can_follow(dtype: torch.dtype) -> None:
    gallery, labels = clouds(10, 3)
    model = neighbors(gallery, labels, 5, tau=0.1).to(dtype)
    middle = torch.stack([gallery[labels == c].mean(dim=0) for c in range(3)])
    images = middle.to(dtype).requires_grad_()
    scores, decided = model.decide(images)
    assert decided.tolist() == [0, 1, 2]
    assert scores.dtype == dtype
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(scores, decided, reduction="sum"), images)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.flatten(1).norm(dim=1) > 1e-6).all())
    # Against the gradient of central differences, the threshold held constant.
    if dtype == torch.float64:
        similarity = nn.functional.normalize(middle, dim=1) @ model.gallery.T
        threshold = similarity.topk(6, dim=1).values[:, -2:].mean(dim=1, keepdim=True)
        members = nn.functional.one_hot(labels, 3).double()

        def loss(at: Tensor) -> float:
            votes = torch.sigmoid((nn.functional.normalize(at, dim=1) @ model.gallery.T - threshold) / 0.1) @ members
            return float(nn.functional.cross_entropy(torch.log(votes + 1e-3), decided, reduction="sum").detach())

        step = 1e-6 * torch.eye(6, dtype=torch.float64)
        start = middle.clone()
        for i in range(3):
            for d in range(6):
                up, down = start.clone(), start.clone()
                up[i] += step[d]
                down[i] -= step[d]
                slope = (loss(up) - loss(down)) / 2e-6
                assert float(gradient[i, d]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_scale_of_an_embedding_does_not_matter() -> None:
    gallery, labels = clouds(10, 3)
    model, images = neighbors(gallery, labels), numbers(2, 20, 6)
    torch.testing.assert_close(model(images), model(17 * images))
    assert torch.equal(model.predict(images), model.predict(17 * images))


# --- what proves the hard vote


def certificate_by_hand(model: NeighborClassifier, row: Any, labels: Any) -> int | None:
    """The class that the sums of one row of similarities prove to win, if they do."""
    ordered = np.sort(row)[::-1]
    distance = (row - (ordered[model.k - 1] + ordered[model.k]) / 2) / model.tau
    vote = 1 / (1 + np.exp(np.minimum(-distance, 700)))
    error = 1 / (1 + np.exp(np.minimum(np.abs(distance), 700)))
    of = [(vote[labels == c].sum(), error[labels == c].sum()) for c in range(model.num_classes)]
    for a, (votes, errors) in enumerate(of):
        others = [other for b, other in enumerate(of) if b != a]
        if all(votes - v > errors + e + 1e-9 * len(row) for v, e in others):
            return a
    return None


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10), st.sampled_from([0.001, 0.01, 0.03, 0.1]), st.integers(2, 4))
def test_the_certificate_proves_the_hard_vote(seed: int, k: int, tau: float, classes: int) -> None:
    gallery, labels = clouds(10, classes, seed=seed)
    images = gallery[::3] + 0.3 * numbers(seed + 5, len(gallery[::3]), 6)
    for dtype in (torch.float64, torch.float32):
        model = neighbors(gallery, labels, k, tau).to(dtype)
        proven, winner = model.certified_vote(images.to(dtype))
        assert torch.equal(winner[proven], model.predict(images.to(dtype))[proven])
    model = neighbors(gallery, labels, k, tau)
    proven, winner = model.certified_vote(images)
    expected = [certificate_by_hand(model, row, labels.numpy()) for row in similarities(model, images)]
    assert [int(c) if ok else None for ok, c in zip(proven, winner, strict=True)] == expected


def test_ties_at_the_threshold_prove_nothing() -> None:
    # One of two equally near references of different classes votes.
    gallery = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.1], [-1.0, -0.1]], dtype=torch.float64)
    model = neighbors(gallery, torch.tensor([0, 1, 2, 3]), k=1, tau=1e-3)
    proven, _ = model.certified_vote(torch.tensor([[1.0, 0.0], [1.0, 0.9]], dtype=torch.float64))
    assert proven.tolist() == [False, True]


def test_the_certificate_holds_for_most_votes_at_a_small_temperature_and_for_fewer_at_a_large_one() -> None:
    # Without this the property above could hold for want of cases.
    gallery, labels = clouds(10, 3)
    images = numbers(7, 200, 6)
    shares = [neighbors(gallery, labels, 5, tau).certified_vote(images)[0].double().mean() for tau in (0.001, 0.01, 1)]
    assert shares[0] > 0.8
    assert shares[0] > shares[1] > shares[2]


# --- further scores


NAMES = ("sharp-vote", "class-means", "votes", "metric-loss")


@pytest.mark.parametrize("name", NAMES)
def test_further_scores_come_with_the_same_hard_votes_and_the_same_parts(name: str) -> None:
    model, images = neighbors(*clouds(9, 3)), numbers(3, 40, 6)
    view = model.surrogate(name)
    scores, decisions = view.decide(images)
    assert torch.equal(scores, view(images))
    assert not torch.allclose(scores, model(images))
    assert torch.equal(decisions, model.predict(images))
    assert torch.equal(view.predict(images), decisions)
    assert torch.equal(view.embed(images), model.embed(images))
    assert (view.num_classes, view.training) == (3, False)
    assert {id(value) for value in view.state_dict(keep_vars=True).values()} == {
        id(value) for value in model.state_dict(keep_vars=True).values()
    }
    assert torch.equal(copy.deepcopy(view)(images), scores)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_reach_further_scores_through_the_oracle_and_leave_the_model_alone(name: str) -> None:
    model, images = neighbors(*clouds(9, 3)), numbers(3, 6, 6)
    names, parts = list(model.state_dict()), list(model.modules())
    with fair_play(model, images, torch.zeros(6).long()):
        oracle = Oracle(model, 6)
        given = images.clone().requires_grad_()
        scores, _ = oracle.subset(torch.arange(2)).surrogate(name).decide(given[:2])
        assert scores.requires_grad == (name != "votes")
        if scores.requires_grad:
            torch.autograd.grad(scores.sum(), given)
    assert oracle.forwards.tolist() == [1, 1, 0, 0, 0, 0]
    assert oracle.backwards.tolist() == ([0] * 6 if name == "votes" else [1, 1, 0, 0, 0, 0])
    assert list(model.state_dict()) == names
    assert list(model.modules()) == parts


def test_attacks_are_offered_the_differentiable_scores_that_follow_the_vote() -> None:
    model = neighbors(*clouds(9, 3))
    assert Oracle(model, 1).surrogates == model.surrogates == ("sharp-vote", "class-means")
    with pytest.raises(KeyError, match="soft-vote"):
        model.surrogate("soft-vote")


def test_the_sharp_vote_is_the_smooth_one_at_a_tenth_of_its_temperature() -> None:
    gallery, labels = clouds(9, 3)
    images = numbers(3, 20, 6)
    view = neighbors(gallery, labels, 4, tau=0.1).surrogate("sharp-vote")
    torch.testing.assert_close(view(images), neighbors(gallery, labels, 4, tau=0.01)(images))


def test_votes_are_counts_with_ties_resolved() -> None:
    gallery, labels = clouds(20, 3)
    images = numbers(7, 100, 6)
    model = neighbors(gallery, labels, 7)
    votes = model.surrogate("votes")(images)
    oracle = KNeighborsClassifier(n_neighbors=7, metric="cosine").fit(gallery.numpy(), labels.numpy())
    np.testing.assert_allclose(votes.round(), 7 * oracle.predict_proba(images.numpy()), atol=1e-9)
    assert torch.equal(votes.argmax(dim=1), model.predict(images))


def test_class_means_are_mean_similarities_and_never_saturate() -> None:
    gallery, labels = clouds(9, 3)
    model, images = neighbors(gallery, labels), numbers(3, 20, 6)
    found = similarities(model, images)
    means = np.stack([found[:, labels.numpy() == c].mean(axis=1) for c in range(3)], axis=1)
    scores = model.surrogate("class-means")(images)
    ratio = scores.numpy() / means
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)
    # Nothing is clearer than an image at one class and opposite to the other.
    extreme = torch.eye(2, dtype=torch.float64)[[0, 0, 0, 0]] * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    view = neighbors(extreme, torch.tensor([0, 0, 1, 1]), k=2).float().surrogate("class-means")
    at = view(extreme[:1].float()).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(at, torch.tensor([0])), at)
    assert bool((gradient.abs() > 1e-6).all())
    torch.testing.assert_close(gradient[:, 0], -gradient[:, 1], rtol=0.01, atol=0)


# --- through the metric loss


def library_loss(model: NeighborClassifier, image: Tensor, label: int, alpha: float) -> Tensor:
    from pytorch_metric_learning.losses import AngularLoss

    loss = AngularLoss(alpha)(
        model.project(image[None]), torch.tensor([label]), ref_emb=model.gallery, ref_labels=model.gallery_labels
    )
    assert isinstance(loss, Tensor)
    return loss


@pytest.mark.parametrize("alpha", [10.0, 40.0, 75.0])
def test_the_metric_loss_of_an_image_is_that_of_pytorch_metric_learning(alpha: float) -> None:
    model = neighbors(*clouds(5, 3), alpha=alpha)
    images = numbers(3, 8, 6).requires_grad_()
    scores = model.surrogate("metric-loss")(images)
    expected = torch.stack([-library_loss(model, image, c, alpha) for image in images for c in range(3)]).reshape(8, 3)
    torch.testing.assert_close(scores, expected)
    weights = numbers(4, 8, 3)
    gradients = [torch.autograd.grad((weights * s).sum(), images, retain_graph=True)[0] for s in (scores, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("alpha", [1.0, 89.0])
def test_the_metric_loss_is_finite_in_float32_for_any_angle(alpha: float) -> None:
    model = neighbors(*clouds(5, 3), alpha=alpha).float()
    images = numbers(3, 8, 6).float().requires_grad_()
    scores = model.surrogate("metric-loss")(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert bool(scores.isfinite().all())
    assert bool(gradient.isfinite().all())


def visible(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("targeted", [False, True])
def test_metric_fgm_is_one_step_along_the_loss_of_the_library(targeted: bool) -> None:
    model, labels = neighbors(visible(15, 0).flatten(1), torch.arange(15) % 3), torch.arange(8) % 3
    images, threat = visible(8, 1), Threat("linf", 0.05, targeted)
    oracle = Oracle(model, 8)
    attacked = MetricFGM().perturb(oracle, images, labels, threat, streams(8))
    for image, label, found in zip(images, labels.tolist(), attacked, strict=True):
        at = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(library_loss(model, at, label, 40.0), at)
        step = (-0.05 if targeted else 0.05) * gradient.sign()
        torch.testing.assert_close(found, (image + step).clamp(0, 1), rtol=0, atol=1e-12)
    assert oracle.spent.tolist() == [[1.0] * 8] * 2
    assert MetricFGM().passes(3) == (1, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_metric_fgm_raises_the_loss_within_its_limits(norm: Norm) -> None:
    model, labels = neighbors(visible(15, 0).flatten(1), torch.arange(15) % 3), torch.arange(8) % 3
    images = visible(8, 1)
    attacked = MetricFGM().perturb(model, images, labels, Threat(norm, 0.05), streams(8))
    assert_allowed(images, attacked, Threat(norm, 0.05))
    loss = [-model.surrogate("metric-loss")(x).gather(1, labels[:, None]) for x in (images, attacked)]
    assert bool((loss[1] > loss[0]).all())
    assert torch.equal(MetricFGM().perturb(model, images, labels, Threat(norm, 0.0), streams(8)), images)
    assert len(MetricFGM().perturb(model, images[:0], labels[:0], Threat(norm, 0.05), streams(0))) == 0


def test_metric_fgm_is_fgm_where_there_is_no_such_loss() -> None:
    assert Registry(installed=False).entry("attack", "metric-fgm", "").mark.norms == ("linf", "l2", "l1")
    model, images, labels = linear(0, 3), images_near(0.5, 0.4, 6), torch.arange(6) % 3
    for threat in (Threat("linf", 0.1), Threat("l2", 0.1, targeted=True)):
        found, plain = (attack.perturb(model, images, labels, threat, streams(6)) for attack in (MetricFGM(), FGM()))
        assert torch.equal(found, plain)
    voting = neighbors(visible(15, 0).flatten(1), torch.arange(15) % 3)
    images, threat = visible(8, 1), Threat("l2", 0.1)
    found, plain = (a.perturb(voting, images, torch.arange(8) % 3, threat, streams(8)) for a in (MetricFGM(), FGM()))
    assert not torch.allclose(found, plain)
