from __future__ import annotations

import itertools

import pytest
import torch
from closed_forms import Linear, images_near, margins, norms, numbers, streams
from torch import Tensor

from robbench.attacks.sparse_rs import SparseRS
from robbench.core.threat_model import Threat


def unmoved(classes: int = 2) -> Linear:
    """A linear model that says class 0 whatever few values do."""
    weight = numbers(4, classes, 48)
    bias = torch.zeros(classes, dtype=torch.float64)
    bias[0] = 1e3
    return Linear(weight, bias).eval()


def best_gain(slope: Tensor, images: Tensor, size: int, channels: int) -> Tensor:
    """The most that a linear function rises where so many pixels go to corners of the color cube."""
    flat = images.flatten(1)
    worth = torch.where(slope > 0, slope * (1 - flat), -slope * flat)
    worth = worth.reshape(len(images), channels, -1).sum(dim=1) if channels > 1 else worth
    return worth.sort(dim=1, descending=True).values[:, :size].sum(dim=1)


@pytest.mark.parametrize(("eps", "size", "channels"), [(9, 3, 3), (12, 4, 3), (2, 2, 1)])
@pytest.mark.parametrize("targeted", [False, True])
def test_with_enough_queries_it_comes_near_the_best(eps: float, size: int, channels: int, targeted: bool) -> None:
    model, images = unmoved(), images_near(0.5, 0.4, 6)
    labels = torch.zeros(6, dtype=torch.int64)
    threat = Threat("l0", eps, targeted)
    attacked = SparseRS(queries=1500).perturb(model, images, 1 - labels if targeted else labels, threat, streams(6))
    gained = margins(model, images, labels) - margins(model, attacked, labels)
    best = best_gain(model.weight[1] - model.weight[0], images, size, channels)
    assert bool((gained <= best + 1e-9).all())
    assert float((gained / best).mean()) > 0.9
    assert bool((norms(attacked - images, "l0") <= eps).all())


@pytest.mark.parametrize("eps", [0, 1, 2, 3, 5, 47, 48, 1000])
def test_changed_values_are_counted_and_extreme(eps: float) -> None:
    images = images_near(0.5, 0.4, 5)
    attacked = SparseRS(queries=30).perturb(unmoved(), images, torch.zeros(5).long(), Threat("l0", eps), streams(5))
    changed = attacked != images
    assert int(changed.flatten(1).sum(dim=1).max()) <= eps
    assert bool(((attacked == 0) | (attacked == 1))[changed].all())
    assert bool(changed.flatten(1).any(dim=1).all()) == (eps > 0)


def test_margins_never_get_worse_with_more_queries() -> None:
    model, images, labels = unmoved(3), images_near(0.5, 0.4, 8), torch.zeros(8, dtype=torch.int64)
    found = [
        margins(
            model,
            SparseRS(queries=n, alpha_init=1e-6).perturb(model, images, labels, Threat("l0", 9), streams(8)),
            labels,
        )
        for n in (1, 10, 100, 400)
    ]
    # An exchange of one pixel at a time whatever the schedule: the first queries are the same ones.
    for fewer, more in itertools.pairwise(found):
        assert bool((more <= fewer).all())
    assert bool((found[-1] < found[0]).all())
