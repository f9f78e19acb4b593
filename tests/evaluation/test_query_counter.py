from __future__ import annotations

import copy

import pytest
import torch
from networks import SHAPE, Network
from torch import Tensor

from robbench.core.contracts import Classifier
from robbench.evaluation.query_counter import Oracle


@pytest.fixture
def model() -> Classifier:
    return Network().eval().requires_grad_(False)


def oracle_and_images(model: Classifier, size: int = 4) -> tuple[Oracle, Tensor]:
    images = torch.rand(size, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    return Oracle(model, size), images


def test_the_oracle_answers_as_the_model(model: Classifier) -> None:
    oracle, images = oracle_and_images(model)
    assert torch.equal(oracle(images), model(images))
    assert torch.equal(oracle.embed(images), model.embed(images))
    assert torch.equal(oracle.predict(images), model.predict(images))
    assert all(map(torch.equal, oracle.decide(images), model.decide(images)))
    assert oracle.num_classes == 3
    assert not oracle.training


def test_the_oracle_counts_each_kind_of_pass(model: Classifier) -> None:
    oracle, images = oracle_and_images(model)
    oracle(images)
    oracle.embed(images)
    oracle.predict(images)
    oracle.decide(images)
    assert oracle.forwards.tolist() == [4.0] * 4
    assert oracle.backwards.tolist() == [0.0] * 4
    given = images.requires_grad_()
    scores = oracle(given)
    assert oracle.backwards.tolist() == [0.0] * 4, "a backward pass is charged when it is run"
    torch.autograd.grad(scores.sum(), given, retain_graph=True)
    torch.autograd.grad(scores[:, 0].sum(), given)
    torch.autograd.grad(oracle.decide(given)[0].sum(), given)
    assert oracle.forwards.tolist() == [6.0] * 4
    assert oracle.backwards.tolist() == [3.0] * 4


def test_a_multiple_of_the_batch_is_charged_alike_and_another_number_spread(model: Classifier) -> None:
    oracle, images = oracle_and_images(model)
    oracle(torch.cat([images] * 5))
    assert oracle.forwards.tolist() == [5.0] * 4
    oracle(images[:1])
    assert oracle.forwards.tolist() == [5.25] * 4


def test_subsets_are_charged_exactly(model: Classifier) -> None:
    oracle, images = oracle_and_images(model, 6)
    some = torch.tensor([4, 1, 3])
    view = oracle.subset(some)
    given = images[some].requires_grad_()
    torch.autograd.grad(view(given).sum(), given)
    mask = torch.tensor([True, False, True])
    inner = view.subset(mask)
    inner.predict(images[some][mask])
    nobody = inner.subset(torch.zeros(2, dtype=torch.bool))
    nobody.predict(images[:0])
    assert oracle.forwards.tolist() == [0, 1, 0, 2, 2, 0]
    assert oracle.backwards.tolist() == [0, 1, 0, 1, 1, 0]
    assert inner.forwards is not None
    assert not inner.training


def test_subsets_are_told_to_the_model() -> None:
    class PerSample(Network):
        """Adds to the scores of each sample a number of its own."""

        offsets = torch.arange(4.0)

        def subset(self, index: Tensor) -> Classifier:
            part = copy.copy(self)
            part.offsets = self.offsets[index]
            return part

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.offsets[:, None]

    oracle, images = oracle_and_images(PerSample().eval().requires_grad_(False))
    whole, some, of_these = oracle(images), torch.tensor([3, 1]), torch.tensor([False, True])
    torch.testing.assert_close(oracle.subset(some)(images[some]), whole[some])
    last = oracle.subset(some).subset(of_these)
    torch.testing.assert_close(last(images[some][of_these]), whole[some][of_these])
    assert oracle.forwards.tolist() == [1, 3, 1, 2]


def test_counting_leaves_no_trace_in_the_model(model: Classifier) -> None:
    names = list(model.state_dict())
    oracle, images = oracle_and_images(model)
    given = images.requires_grad_()
    torch.autograd.grad(oracle(given).sum(), given)
    assert list(model.state_dict()) == names
    assert list(oracle.state_dict()) == [f"model.{name}" for name in names]
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert oracle.spent.requires_grad is False


def test_charges_do_not_build_a_graph(model: Classifier) -> None:
    oracle, images = oracle_and_images(model)
    given = images.requires_grad_()
    with torch.no_grad():
        oracle(given)
    assert oracle.forwards.tolist() == [1.0] * 4
    assert oracle.backwards.tolist() == [0.0] * 4
