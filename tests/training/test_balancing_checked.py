"""What balancers give is checked where training takes it over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from robbench.core.contracts import Samples
from robbench.core.errors import Breach
from robbench.core.sample_rng import Streams
from robbench.results.store import Store
from robbench.training.balancing import augmented, check_class_weights, check_inside, check_samples
from robbench.training.trainer import train

GIVEN = Samples(
    torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
    torch.arange(6) % 3,
    torch.arange(6),
)


def test_a_resampled_set_may_be_larger_or_smaller_and_in_any_order() -> None:
    for index in (torch.tensor([5, 0, 3]), torch.arange(6)):
        assert torch.equal(check_samples(GIVEN[index], GIVEN, 3).ids, GIVEN.ids[index])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda given: None, "got NoneType, not Samples"),
        (lambda given: (given.images, given.labels, given.ids), "got tuple"),
        (lambda given: replace(given, images=given.images.numpy()), "not a plain torch.Tensor"),
        (lambda given: replace(given, images=given.images.float() / 255), "images were torch.uint8"),
        (lambda given: replace(given, images=given.images[:, :1]), "images were"),
        (lambda given: replace(given, images=given.images[:5]), "there are 5 images for 6 labels"),
        (lambda given: replace(given, labels=given.labels.float()), "labels were torch.int64"),
        (lambda given: replace(given, labels=given.labels[:, None]), "labels were"),
        (lambda given: replace(given, labels=given.labels + 1), "labels go from 1 to 3 of 3"),
        (lambda given: replace(given, labels=given.labels - 1), "labels go from -1 to 1 of 3"),
        (lambda given: replace(given, ids=given.ids * 0), "share an id"),
        (lambda given: replace(given, ids=given.ids[:4]), "there are 4 ids for 6 labels"),
        (lambda given: given[torch.arange(0)], "there are 0 images"),
    ],
)
def test_a_resampled_set_that_is_none_is_refused(spoil: Callable[[Samples], Any], found: str) -> None:
    with pytest.raises(Breach, match=f"a resampled set is one: .*{found}"):
        check_samples(spoil(GIVEN), GIVEN, 3)


def test_class_weights_are_numbers_above_zero() -> None:
    assert check_class_weights(None, 3) is None
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert check_class_weights(weights, 3) is not None
    for broken in (weights[:2], weights.long(), weights * 0, -weights, weights / 0, weights[None], [1.0, 2.0, 3.0]):
        with pytest.raises(Breach, match="class weights are numbers above zero"):
            check_class_weights(broken, 3)


def batch(augment: Callable[[Tensor], Any]) -> list[Tensor]:
    component = SimpleNamespace(augment=lambda images, dataset, rng: augment(images))
    job: Any = SimpleNamespace(
        balancer=SimpleNamespace(component=component), data=SimpleNamespace(choice=SimpleNamespace(component=None))
    )
    inside: list[Tensor] = []
    augmented(job, torch.rand(4, 3, 5, 5), Streams.of(torch.arange(4), 0, "test"), inside)
    return inside


@pytest.mark.parametrize(
    "augment",
    [
        lambda images: None,
        lambda images: images.numpy(),
        lambda images: images[:3],
        lambda images: images[:, :1],
        lambda images: images.double(),
        lambda images: (images * 255).to(torch.uint8),
        lambda images: images.to("meta"),
    ],
)
def test_an_augmented_batch_keeps_its_form(augment: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Breach, match="augmented images are images"):
        batch(augment)


@pytest.mark.parametrize(
    "augment", [lambda images: images + 1, lambda images: -images, lambda images: images * torch.nan]
)
def test_values_of_augmented_batches_are_looked_at_once_an_epoch(augment: Callable[[Tensor], Any]) -> None:
    good = batch(lambda images: images.flip(3))
    check_inside(good)
    with pytest.raises(Breach, match="values leave"):
        check_inside([*good, *batch(augment), *good])


PLUGIN = """
from dataclasses import dataclass
import os
from robbench import Balancer, register_balancer

@register_balancer("bright")
@dataclass(frozen=True)
class Bright(Balancer):
    def augment(self, images, dataset, rng):
        return images + 0.5

@register_balancer("moving")
@dataclass(frozen=True)
class Moving(Balancer):
    def resample(self, samples, dataset, seed):
        os.chdir("/")
        return samples, ()
"""


@pytest.mark.parametrize(("name", "rule"), [("bright", "augmented images are images"), ("moving", "working directory")])
def test_training_fails_by_the_rules_name(name: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    here = Path.cwd()
    job = tiny.job(tmp_path, f"balancer = '{name}'", recipe="epochs = 1", plugins=[tmp_path / "own.py"])
    with pytest.raises(Breach, match=rule):
        train(job, Store(tmp_path / "runs"), "cpu", "float32")
    assert Path.cwd() == here
