"""Gradients of batches that memory has no room for are those of the whole batch, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import SHAPE, Linear, numbers
from torch import Tensor
from training_steps import Normed, step

from robbench.core.contracts import Defense, Objective
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.models.cross_entropy import CrossEntropy
from robbench.planning.component_spec import choose
from robbench.training.accumulation import Accumulation
from robbench.training.composition import compose
from robbench.training.passes import TrainingPasses, counted

COUNT = 11
IMAGES = torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(COUNT) % 3
WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
REGISTRY = Registry(installed=False)


class Hungry(Linear):
    """Has memory for the scores of so many images and no more."""

    most = COUNT

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("fake")
        return scores


def network(most: int) -> Hungry:
    found = Hungry(numbers(3, 3, IMAGES[0].numel()).double() / 10, torch.zeros(3).double()).requires_grad_(True).train()
    found.most = most
    return found


def gradients(most: int, defenses: list[Defense], weights: Tensor | None) -> tuple[float, list[Tensor], Any, int]:
    model, parts = network(most), Accumulation.of(CrossEntropy(), defenses)
    with counted(model) as passes:
        batch = step(model, IMAGES, LABELS, class_weights=weights)
        loss = parts.backward(model, batch, compose(defenses), passes)
    found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    assert found
    return float(loss), found, parts, passes.backwards


def named(name: str) -> Defense:
    found = choose(REGISTRY, "defense", name, "").component
    assert isinstance(found, Defense)
    return found


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", ["none", "fgm", "pgd-training", "trades", "mart", "perturbation", "smoothing", "jpeg"])
def test_parts_add_up_to_the_gradient_of_the_batch(name: str, weights: Tensor | None) -> None:
    defenses = [named(name)]
    loss, whole, kept, passes = gradients(COUNT, defenses, weights)
    assert kept.notes == []
    in_parts, found, noted, again = gradients(3, defenses, weights)
    assert in_parts == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert noted.notes == ["memory ran out: gradients of batches of 11 summed up over parts of 2"]
    assert noted.size == 2
    assert again == passes, "passes that memory ended do not count"


def test_the_size_that_fits_is_kept_and_batch_normalization_is_spoken_of() -> None:
    class Tight(Normed):
        calls: tuple[int, ...] = ()

        def embed(self, images: Tensor) -> Tensor:
            self.calls += (len(images),)
            if len(images) > 6:
                raise MemoryError
            return super().embed(images)

    model, parts = Tight(), Accumulation.of(CrossEntropy(), [])
    images = torch.rand(COUNT, 3, 4, 4, dtype=torch.float64)
    for _ in range(2):
        parts.backward(model, step(model, images, LABELS), compose([]), TrainingPasses())
    assert model.calls == (11, 4, 4, 3, 4, 4, 3)
    (note,) = parts.notes
    assert note.endswith("over parts of 5; statistics of batch normalization are those of a part")


@pytest.mark.parametrize(
    ("objective", "defense", "why"),
    [
        ("cross-entropy", "awp", "WeightPerturbation"),
        ("cross-entropy", "free", "FreeTraining"),
        ("cross-entropy", "mixup", "MixUpTraining"),
        ("angular", "none", "Angular"),
    ],
)
def test_losses_of_whole_batches_are_refused_in_one_line(objective: str, defense: str, why: str) -> None:
    chosen = choose(REGISTRY, "objective", objective, "").component
    assert isinstance(chosen, Objective)
    parts = Accumulation.of(chosen, [named(defense)])

    def hungry(batch: object) -> Tensor:
        raise torch.OutOfMemoryError("fake")

    model = network(COUNT)
    with pytest.raises(RequestError, match=rf"on batches of 11, and {why}\w* needs whole batches; make batch_size"):
        parts.backward(model, step(model, IMAGES, LABELS), hungry, TrainingPasses())
