from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import numbers
from galleries import Flat, clouds, neighbors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robbench.models.angular import Angular
from robbench.models.compact_cnn import CompactCNN
from robbench.models.cross_entropy import CrossEntropy, LogitClassifier
from robbench.training.network import NormalizedBackbone

# --- the angular loss


def embeddings(count: int = 12, seed: int = 0) -> Tensor:
    return nn.functional.normalize(numbers(seed, count, 5), dim=1)


def angular_by_hand(anchors: Any, references: Any, labels: Any, alpha: float, weights: Any, same: bool) -> float:
    """Equation 8 of Wang et al. (2017), for every pair of anchor and positive, all other classes as negatives."""
    tangent = math.tan(math.radians(alpha)) ** 2
    losses = []
    for a in range(len(labels)):
        for p in range(len(labels)):
            if labels[a] != labels[p] or (same and a == p):
                continue
            total = 1.0
            for n in range(len(labels)):
                if labels[n] != labels[a]:
                    middle = (anchors[a] + references[p]) @ references[n]
                    total += math.exp(4 * tangent * middle - 2 * (1 + tangent) * (anchors[a] @ references[p]))
            losses.append(math.log(total) * (1.0 if weights is None else weights[labels[a]]))
    return float(np.mean(losses))


@pytest.mark.parametrize("alpha", [20.0, 40.0, 55.0])
@pytest.mark.parametrize("weights", [None, [1.0, 4.0, 0.5]])
def test_angular_loss_is_its_formula(alpha: float, weights: list[float] | None) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0])
    model, points = neighbors(*clouds(4, 3, size=5)), embeddings()
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = Angular(alpha=alpha).loss(model, 3 * points, labels, given)
    found = points.numpy()
    assert float(loss) == pytest.approx(angular_by_hand(found, found, labels.tolist(), alpha, weights, True), rel=1e-6)


def test_angular_loss_is_that_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import AngularLoss

    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 2, 1])
    model = neighbors(*clouds(4, 3, size=5))
    images = numbers(4, 12, 5).requires_grad_()
    loss = Angular(alpha=35).loss(model, images, labels, None)
    expected = AngularLoss(35)(nn.functional.normalize(images, dim=1), labels)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, images, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_angular_loss_against_frozen_references() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2])
    model, clean = neighbors(*clouds(4, 3, size=5)), embeddings()
    changed = embeddings(seed=1).requires_grad_()
    anchor = clean.clone().requires_grad_()
    loss = Angular().loss(model, changed, labels, None, anchor=anchor)
    by_hand = [
        angular_by_hand(changed.detach().numpy(), clean.numpy(), labels.tolist(), 40.0, None, same)
        for same in (True, False)
    ]
    assert min(abs(float(loss.detach()) - value) for value in by_hand) < 1e-6
    loss.backward()
    assert changed.grad is not None
    assert anchor.grad is None


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 1, 1]])
def test_angular_loss_without_a_triplet_is_zero_and_can_be_descended_on(labels: list[int]) -> None:
    model, images = neighbors(*clouds(4, 3, size=5)), embeddings(3).requires_grad_()
    loss = Angular().loss(model, images, torch.tensor(labels), torch.ones(3))
    loss.backward()
    assert float(loss.detach()) == 0
    assert images.grad is not None
    assert not images.grad.any()


# --- batches


def labels_of(counts: list[int]) -> Tensor:
    return torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(2, 64), st.integers(0, 100))
def test_cross_entropy_sees_every_image_once_and_never_a_batch_of_one(count: int, size: int, seed: int) -> None:
    batches = list(CrossEntropy().batches(torch.zeros(count), size, np.random.default_rng(seed)))
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert all(2 <= len(batch) <= size + 1 for batch in batches)
    assert all(len(batch) == size for batch in batches[:-1])


def test_cross_entropy_order_follows_the_generator() -> None:
    labels = torch.zeros(50)
    first, again, other = ([*CrossEntropy().batches(labels, 8, np.random.default_rng(s))] for s in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert torch.cat(first).tolist() != list(range(50))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.integers(2, 8),
    st.integers(2, 64),
    st.integers(0, 100),
)
def test_angular_batches_hold_the_same_number_of_several_classes(
    counts: list[int], per_class: int, size: int, seed: int
) -> None:
    labels = labels_of(counts)
    batches = list(Angular(per_class=per_class).batches(labels, size, np.random.default_rng(seed)))
    classes = min(len(counts), max(2, size // per_class))
    assert len(batches) == math.ceil(sum(counts) / (classes * per_class))
    for batch in batches:
        found, times = torch.unique(labels[batch], return_counts=True)
        assert len(found) == classes
        assert times.tolist() == [per_class] * classes


def test_angular_batches_walk_through_a_class_before_they_repeat() -> None:
    labels = labels_of([24, 24])
    batches = list(Angular(per_class=8).batches(labels, 16, np.random.default_rng(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(48))
    rare = list(Angular(per_class=4).batches(labels_of([40, 6]), 8, np.random.default_rng(0)))
    seen = [index for index in torch.cat(rare).tolist() if index >= 40]
    for start in range(0, len(seen) - 5, 6):
        assert sorted(seen[start : start + 6]) == [40, 41, 42, 43, 44, 45]


def test_class_weights_weigh_cross_entropy() -> None:
    model = LogitClassifier(Flat(5), 3).double().requires_grad_(False)
    images, labels = numbers(0, 9, 5), torch.tensor([0, 1, 2] * 3)
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float32)
    scores = model(images).detach().float()
    own = -torch.log_softmax(scores, dim=1)[torch.arange(9), labels]
    expected = (own * weights[labels]).sum() / weights[labels].sum()
    torch.testing.assert_close(CrossEntropy().loss(model, images, labels, weights), expected)
    torch.testing.assert_close(CrossEntropy().loss(model, images, labels, None), own.mean())


# --- normalization


def test_normalization_stands_in_front_of_the_network() -> None:
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.3, 1.5])
    inner = CompactCNN(width=4).build((3, 16, 16))
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wrapped = NormalizedBackbone(inner, mean, std)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(wrapped(images), inner(by_hand), rtol=1e-5, atol=1e-6)
    assert wrapped.out_features == inner.out_features
    assert {"mean", "std"} <= set(wrapped.state_dict())
