"""What a step of training gives to defenses: losses, scores, and attacks that leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from closed_forms import images_near, linear, numbers
from torch import Tensor, nn
from torch.nn import functional
from training_steps import Normed, step, trainable

from robbench.core.contracts import Classifier
from robbench.core.training_step import Batch
from robbench.models.angular import Angular

LABELS = torch.arange(6) % 3


def images() -> Tensor:
    return images_near(0.5, 0.4, 6)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unlike(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class Tracking(Normed):
    """With statistics of its own beside those of batch normalization."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.norm = nn.InstanceNorm2d(3, track_running_stats=True).double()
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)).double()

    def embed(self, images: Tensor) -> Tensor:
        self.seen += 1
        result: Tensor = self.spectral(super().embed(self.norm(images)))
        return result


ATTACKS: list[Callable[[Batch, Tensor], Tensor]] = [
    lambda batch, x: batch.attack_loss(x, batch.images),
    lambda batch, x: batch.attack_loss(x, batch.images, mode="eval"),
    lambda batch, x: batch.attack_scores(x).square().mean(),
    lambda batch, x: batch.attack_scores(x, "eval").square().mean(),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("network", [Normed, Tracking])
def test_an_attack_leaves_nothing_behind_even_where_it_goes_backward(
    network: Callable[[], Classifier], attack: Callable[[Batch, Tensor], Tensor]
) -> None:
    model = network()
    model.get_submodule("body.3").eval()
    before, modes = state(model), [part.training for part in model.modules()]
    batch, x = step(model, images(), LABELS), images().requires_grad_()
    attack(batch, x).backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    assert all(weight.grad is None for weight in model.parameters())
    assert not unlike(before, state(model))
    assert [part.training for part in model.modules()] == modes


def test_a_training_pass_moves_statistics_once() -> None:
    model = Normed()
    batch = step(model, images(), LABELS)
    for moved, asked in enumerate((batch.loss, batch.scores), start=1):
        asked(images())
        assert int(model.get_buffer("body.1.num_batches_tracked")) == moved


def test_attacks_see_the_network_as_it_trains_or_as_it_predicts() -> None:
    model, x = Normed(), images()
    batch = step(model, x, LABELS)
    trained = batch.scores(x)
    torch.testing.assert_close(batch.attack_scores(x), trained)
    torch.testing.assert_close(batch.attack_loss(x, x), functional.cross_entropy(trained.float(), LABELS))
    model.eval()
    predicted = model(x)
    model.train()
    torch.testing.assert_close(batch.attack_scores(x, "eval"), predicted)
    assert not torch.allclose(trained, predicted)


def test_gradients_at_other_weights_reach_the_own_ones_as_they_are() -> None:
    model = Normed()
    batch = step(model, images(), LABELS)
    moves = {name: 0.1 * torch.ones_like(weight) for name, weight in model.named_parameters()}
    moved = batch.at({name: weight + moves[name] for name, weight in model.named_parameters()})
    loss = moved.loss(images())
    found = torch.autograd.grad(loss, list(model.parameters()))
    other = Normed()
    with torch.no_grad():
        for name, weight in other.named_parameters():
            weight.add_(moves[name])
    expected = functional.cross_entropy(other(images()).float(), LABELS)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(other.parameters())))
    torch.testing.assert_close(moved.attack_loss(images(), images()), expected)
    assert int(model.get_buffer("body.1.num_batches_tracked")) == 1


def test_gradients_of_an_attack_reach_weights_that_were_put_in_place() -> None:
    model = Normed()
    own = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    batch = step(model, images(), LABELS)
    found = torch.autograd.grad(batch.at(own).attack_loss(images(), images()), list(own.values()))
    torch.testing.assert_close(found, torch.autograd.grad(batch.loss(images()), list(model.parameters())))


def test_mixed_labels_that_are_one_class_each_are_that_class() -> None:
    weights, scores = torch.tensor([1.0, 2.0, 5.0]), numbers(1, 6, 3).float()
    shares = functional.one_hot(LABELS, 3).float()
    for class_weights in (None, weights):
        hard = step(linear(0, 3), images(), LABELS, class_weights=class_weights)
        soft = step(linear(0, 3), images(), shares, class_weights=class_weights)
        torch.testing.assert_close(soft.score_loss(scores), hard.score_loss(scores))
        torch.testing.assert_close(soft.sample_weights, hard.sample_weights)
        torch.testing.assert_close(hard.score_loss(scores, shares), hard.score_loss(scores))
        losses = functional.cross_entropy(scores, LABELS, reduction="none")
        torch.testing.assert_close(hard.mean(losses), hard.score_loss(scores))


def test_mixed_labels_mix_losses() -> None:
    shares, scores = torch.softmax(numbers(2, 6, 3), dim=1).float(), numbers(1, 6, 3).float()
    weights = torch.tensor([1.0, 2.0, 5.0])
    batch = step(linear(0, 3), images(), shares, class_weights=weights)
    each = -(weights * shares * scores.log_softmax(dim=1)).sum() / (shares @ weights).sum()
    torch.testing.assert_close(batch.score_loss(scores), each)
    torch.testing.assert_close(batch.sample_weights, shares @ weights)


def test_weights_of_samples_are_one_without_a_balancer() -> None:
    batch = step(trainable(numbers(0, 3, 48)), images(), LABELS)
    assert torch.equal(batch.sample_weights, torch.ones(6))
    assert float(batch.mean(torch.arange(6.0))) == 2.5


def test_an_objective_says_whether_it_trains_scores() -> None:
    assert not Angular().trains_scores
    with pytest.raises(NotImplementedError, match="Angular trains no scores"):
        step(linear(0, 3), images(), LABELS, objective=Angular()).score_loss(numbers(0, 6, 3))
    assert step(linear(0, 3), images(), LABELS).objective.trains_scores
