"""Training-time defenses: the losses they build, what their examples are made from, and how they chain."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from closed_forms import Constant, images_near, linear, norms, numbers, streams
from torch import Tensor
from training_steps import Seen, recording, step, trainable

from robbench.attacks.fgm import FGM
from robbench.attacks.perturbation import Perturbation
from robbench.core.contracts import Defense
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch
from robbench.defenses.fgm import FGMTraining
from robbench.defenses.none import NoDefense
from robbench.defenses.perturbation import PerturbationTraining
from robbench.training.composition import compose

MILD = PerturbationTraining(pixels=2)


def batch_of(seen: Seen, weight: Tensor, eps: float = 0.03, seed: int = 0) -> Batch:
    images, labels = images_near(0.5, 0.4, 6), torch.arange(6) % 3
    return step(trainable(weight), images, labels, objective=recording(seen), rng=streams(6, seed), eps=eps)


def test_no_defense_is_the_loss_itself() -> None:
    weight, seen = numbers(0, 3, 48), Seen()
    batch = batch_of(seen, weight)
    assert torch.equal(NoDefense().training_loss(batch), batch.loss(batch.images))
    assert torch.equal(compose([])(batch), batch.loss(batch.images))
    assert not seen.attacked


def test_perturbation_trains_on_what_the_attack_of_that_name_makes() -> None:
    weight, seen = numbers(0, 3, 48), Seen()
    batch = batch_of(seen, weight)
    MILD.training_loss(batch)
    (trained,) = seen.trained
    assert torch.equal(trained, Perturbation(pixels=2).apply(batch.images, batch.rng))
    assert not torch.equal(trained, batch.images)
    MILD.training_loss(batch_of(seen, weight, seed=1))
    assert not torch.equal(seen.trained[1], trained)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_fgm_mixes_the_losses_of_images_and_examples(norm: str, alpha: float) -> None:
    weight, seen = numbers(0, 3, 48), Seen()
    batch = batch_of(seen, weight)
    (own, _) = batch.model.parameters()
    loss = FGMTraining(eps=0.1, norm=norm, alpha=alpha).training_loss(batch)  # type: ignore[arg-type]
    assert own.grad is None
    model = linear(0, 3)
    model.weight.data, model.bias.data = weight, torch.zeros(3, dtype=torch.float64)
    examples = FGM().perturb(model, batch.images, batch.labels, Threat(norm, 0.1), batch.rng)  # type: ignore[arg-type]
    expected = (1 - alpha) * batch.loss(examples) + alpha * batch.loss(batch.images)
    torch.testing.assert_close(loss, expected)
    # Gradients reach the weights through both losses, but not through the step.
    torch.testing.assert_close(torch.autograd.grad(loss, own)[0], torch.autograd.grad(expected, own)[0])
    assert bool(loss > batch.loss(batch.images))


def test_fgm_takes_the_data_sets_eps_unless_it_has_one() -> None:
    for eps, expected in ((None, 0.03), (0.07, 0.07)):
        seen = Seen()
        batch = batch_of(seen, numbers(0, 3, 48))
        FGMTraining(eps=eps, alpha=0.0).training_loss(batch)
        (trained,) = seen.trained
        torch.testing.assert_close(norms(trained - batch.images, "linf"), torch.full((6,), expected).double())


def test_fgm_in_another_norm_needs_an_eps() -> None:
    with pytest.raises(RequestError, match="needs an eps"):
        FGMTraining(norm="l2")
    with pytest.raises(RequestError, match="alpha"):
        FGMTraining(alpha=1.0)


def test_fgm_after_perturbation_attacks_the_perturbed_images() -> None:
    weight, seen = numbers(0, 3, 48), Seen()
    batch = batch_of(seen, weight)
    compose([MILD, FGMTraining()])(batch)
    (attacked,) = seen.attacked
    assert torch.equal(attacked, Perturbation(pixels=2).apply(batch.images, batch.rng.fork("defense", 0)))
    assert torch.equal(seen.references[0], attacked)
    examples, plain = seen.trained
    assert torch.equal(plain, attacked)
    moved = norms(examples - attacked, "linf")
    assert float(moved.max()) == pytest.approx(0.03)
    assert float(norms(examples - batch.images, "linf").max()) > 0.1


def test_perturbation_after_fgm_perturbs_images_and_examples_alike() -> None:
    weight, seen = numbers(0, 3, 48), Seen()
    batch = batch_of(seen, weight)
    compose([FGMTraining(), MILD])(batch)
    (attacked,) = seen.attacked
    assert torch.equal(attacked, batch.images)
    perturb = Perturbation(pixels=2)
    assert torch.equal(seen.trained[1], perturb.apply(batch.images, batch.rng.fork("defense", 1)))


def test_equal_defenses_in_a_row_draw_differently() -> None:
    batch = batch_of(Seen(), numbers(0, 3, 48))
    drawn: list[Tensor] = []

    @dataclass(frozen=True)
    class Drawing(Defense):
        def training_loss(self, batch: Batch) -> Tensor:
            drawn.append(batch.rng.uniform("x", ()))
            return batch.loss(batch.images)

    compose([Drawing(), Drawing(), Drawing()])(batch)
    assert len({tuple(draw.tolist()) for draw in drawn}) == 3


def test_composing_one_defense_changes_only_its_streams() -> None:
    weight = numbers(0, 3, 48)
    alone, composed = Seen(), Seen()
    FGMTraining().training_loss(batch_of(alone, weight))
    compose([FGMTraining()])(batch_of(composed, weight))
    assert all(torch.equal(a, b) for a, b in zip(alone.trained, composed.trained, strict=True))


def test_a_loss_that_does_not_see_the_images_leaves_them() -> None:
    images, seen = images_near(0.5, 0.4, 2), Seen()
    FGMTraining(alpha=0.0).training_loss(batch_of(seen, torch.zeros(3, 48).double()))
    assert torch.equal(seen.trained[0][:2], images_near(0.5, 0.4, 6)[:2])
    model = Constant(torch.zeros(3, 48), torch.zeros(3)).requires_grad_(True)
    FGMTraining(alpha=0.0).training_loss(step(model, images, torch.zeros(2).long(), objective=recording(seen)))
    assert torch.equal(seen.trained[1], images)
