"""Adversarial training: what its attacks find on models whose best attack is known, and its losses by formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import assert_allowed, images_near, largest_gain, norms, numbers, streams
from torch import Tensor
from torch.nn import functional
from training_steps import Normed, Seen, recording, step, trainable

from robbench.attacks._projections import project, uniform_in_ball
from robbench.conformance.scenarios import Features
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch
from robbench.defenses._adversarial_training import AdversarialTraining, ExampleTraining
from robbench.defenses.awp import WeightPerturbation
from robbench.defenses.fgm import FGMTraining
from robbench.defenses.fgsm_rs import FGSMRandomStart
from robbench.defenses.free import FreeTraining
from robbench.defenses.mart import MartTraining
from robbench.defenses.n_fgsm import NoisyFGSM
from robbench.defenses.pgd_training import PGDTraining
from robbench.defenses.trades import TradesTraining
from robbench.models.angular import Angular

EPS = 0.06
LABELS = torch.arange(6) % 3
EVERY: list[AdversarialTraining] = [
    FGMTraining(),
    FGSMRandomStart(),
    NoisyFGSM(),
    PGDTraining(steps=3),
    FreeTraining(),
    TradesTraining(steps=3),
    MartTraining(steps=3),
    WeightPerturbation(steps=3),
    WeightPerturbation(steps=3, on="trades"),
]
NAMES = [f"{type(one).__name__} {getattr(one, 'on', '')}" for one in EVERY]


def images(room: float = 0.4) -> Tensor:
    return images_near(0.5, room, 6)


def two_classes(seed: int = 0) -> tuple[Any, Tensor]:
    """A linear model and the slopes along which images of classes 0, 1, 0, … leave their class."""
    weight = numbers(seed, 2, 48)
    labels = torch.arange(6) % 2
    return trainable(0.1 * weight), 0.1 * (weight[1 - labels] - weight[labels])


# --- attacks in training on linear models


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_finds_the_best_change_of_a_linear_model(norm: Any) -> None:
    eps = {"linf": EPS, "l2": 0.3, "l1": 0.3}[norm]
    model, slopes = two_classes()
    x = images(0.5 if norm == "linf" else 0.1)
    batch = step(model, x, torch.arange(6) % 2)
    found = PGDTraining(eps=eps, norm=norm, steps=40).examples(batch)
    assert_allowed(x, found, Threat(norm, eps))
    gained = (slopes * (found - x).flatten(1)).sum(dim=1)
    torch.testing.assert_close(gained, largest_gain(slopes, x, norm, eps), rtol=1e-4, atol=1e-6)


def test_one_step_from_a_random_start_goes_to_the_border_or_a_quarter_beyond_the_start() -> None:
    model, slopes = two_classes()
    x = images()
    batch = step(model, x, torch.arange(6) % 2)
    found = FGSMRandomStart(eps=EPS).examples(batch)
    start = uniform_in_ball(batch.rng, "start", x, "linf", EPS)
    wanted = (start + 1.25 * EPS * slopes.sign().reshape(x.shape)).clamp(-EPS, EPS)
    torch.testing.assert_close(found - x, wanted)
    # On average 5/8 + 3/8 * 5/8 of the best change: all of it unless the start lay in the last 3/8 on the other side.
    gained = (slopes * (found - x).flatten(1)).sum(dim=1) / largest_gain(slopes, x, "linf", EPS)
    assert float(gained.mean()) == pytest.approx(55 / 64, abs=0.03)


def test_noise_is_twice_as_large_and_the_step_from_it_is_not_projected() -> None:
    model, slopes = two_classes()
    x = images(0.3)
    batch = step(model, x, torch.arange(6) % 2)
    found = NoisyFGSM(eps=EPS).examples(batch)
    noise = uniform_in_ball(batch.rng, "start", x, "linf", 2 * EPS)
    torch.testing.assert_close(found - x, noise + EPS * slopes.sign().reshape(x.shape))
    assert float(norms(found - x, "linf").max()) > 2 * EPS
    dark = step(model, torch.zeros_like(x), torch.arange(6) % 2)
    assert float(NoisyFGSM(eps=EPS).examples(dark).min()) == 0


def test_trades_raises_the_divergence_as_far_as_a_linear_model_lets_it() -> None:
    """Of two classes, the divergence grows with the change of the score difference."""
    model, slopes = two_classes()
    x = images()
    batch = step(model, x, torch.arange(6) % 2)
    found = TradesTraining(eps=EPS, steps=40).examples(batch)
    assert_allowed(x, found, Threat("linf", EPS))
    moved = (slopes * (found - x).flatten(1)).sum(dim=1)
    torch.testing.assert_close(moved.abs(), largest_gain(slopes, x, "linf", EPS), rtol=1e-4, atol=1e-6)


# --- what all of them share


@pytest.mark.parametrize("defense", EVERY, ids=NAMES)
def test_attacks_move_no_statistics_and_leave_no_gradients(defense: AdversarialTraining) -> None:
    model = Normed(dropout=0.1)
    batch = step(model, images(), LABELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng():
        loss = defense.training_loss(batch)
    assert all(weight.grad is None for weight in model.parameters())
    moved = int(model.get_buffer("body.1.num_batches_tracked"))
    # A pass of training over clean images and one over examples, or one where only examples are trained on.
    assert moved == (2 if defense.uses_scores or defense == FGMTraining() else 1)
    assert model.training
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
    loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in model.parameters())
    if isinstance(defense, ExampleTraining):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        defense.examples(batch)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_eps_grows_linearly_and_stays() -> None:
    defense = PGDTraining(eps=0.2, eps_warmup=0.4)
    for progress, expected in ((0.0, 0.0), (0.1, 0.05), (0.2, 0.1), (0.4, 0.2), (0.9, 0.2)):
        batch = step(two_classes()[0], images(), torch.arange(6) % 2, progress=progress)
        assert defense.radius(batch) == pytest.approx(expected)
        assert float(norms(defense.examples(batch) - images(), "linf").max()) == pytest.approx(expected, abs=1e-9)
    assert PGDTraining(eps_warmup=1.0).radius(step(two_classes()[0], images(), LABELS, eps=0.1, progress=0.5)) == 0.05


@pytest.mark.parametrize("defense", EVERY, ids=NAMES)
def test_every_method_takes_eps_zero_at_the_beginning_of_its_warmup(defense: AdversarialTraining) -> None:
    batch = step(Normed(), images(), LABELS, progress=0.0)
    loss = replace(defense, eps_warmup=0.5).training_loss(batch)
    assert bool(loss.isfinite())


def test_the_attack_sees_the_network_as_asked() -> None:
    x = images()
    found = {}
    for mode in ("train", "eval"):
        model = Normed()
        model.body[1].running_mean.fill_(0.3)  # type: ignore[operator]
        found[mode] = PGDTraining(eps=EPS, steps=2, mode=mode).examples(step(model, x, LABELS))
    assert not torch.equal(found["train"], found["eval"])


def test_clean_and_attacked_losses_are_mixed() -> None:
    seen = Seen()
    batch = step(trainable(numbers(0, 3, 48)), images(), LABELS, objective=recording(seen))
    loss = PGDTraining(eps=EPS, steps=2, alpha=0.25).training_loss(batch)
    attacked, clean = seen.trained
    assert torch.equal(clean, images())
    torch.testing.assert_close(loss, 0.25 * batch.loss(clean) + 0.75 * batch.loss(attacked))


def test_other_norms_need_an_eps() -> None:
    for kind in (FGSMRandomStart, NoisyFGSM, PGDTraining, TradesTraining, MartTraining, WeightPerturbation):
        with pytest.raises(RequestError, match="needs an eps"):
            kind(norm="l2")
    with pytest.raises(RequestError, match="norm"):
        FreeTraining(norm="l2", eps=0.5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="8/255"):
        PGDTraining(eps=8.0)


@pytest.mark.parametrize(
    "defense", [FGSMRandomStart(), NoisyFGSM(), PGDTraining(steps=2), FreeTraining(), WeightPerturbation(steps=2)]
)
def test_the_angular_objective_is_attacked_through_its_own_loss(defense: AdversarialTraining) -> None:
    labels = torch.arange(6) % 3
    objective = Angular(embedding_size=8, k=1)
    model = objective.build(Features((3, 4, 4)), 3, torch.arange(6) % 3).train()
    batch = step(model, images().float(), labels, objective=objective)
    loss = defense.training_loss(batch)
    loss.backward()
    assert bool(loss.isfinite())


# --- losses by formula


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=1)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_trades_is_its_formula(weights: Tensor | None) -> None:
    model = trainable(numbers(0, 3, 48))
    batch = step(model, images(), LABELS, class_weights=None if weights is None else weights.double())
    defense = TradesTraining(eps=EPS, beta=4.0)
    examples = defense.examples(batch)
    loss = defense.training_loss(batch)
    clean, attacked = model(images()).softmax(dim=1), model(examples).softmax(dim=1)
    each = -clean[torch.arange(6), LABELS].log() + 4 * kl(clean, attacked)
    share = torch.ones(6).double() if weights is None else weights.double()[LABELS]
    expected = (share * each).sum() / share.sum()
    torch.testing.assert_close(loss, expected)
    own = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, own), torch.autograd.grad(expected, own))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_mart_is_its_formula(weights: Tensor | None) -> None:
    model = trainable(0.3 * numbers(0, 3, 48))
    batch = step(model, images(), LABELS, class_weights=None if weights is None else weights.double())
    defense = MartTraining(eps=EPS, beta=4.0)
    examples = defense.ascended(batch, defense.nudged(batch))
    loss = defense.training_loss(batch)
    with torch.no_grad():
        clean, attacked = model(images()).softmax(dim=1), model(examples).softmax(dim=1)
    terms = []
    for i, label in enumerate(LABELS.tolist()):
        rival = max(float(attacked[i, k]) for k in range(3) if k != label)
        boosted = -math.log(float(attacked[i, label])) - math.log(1.0001 - rival)
        terms.append(boosted + 4 * float(kl(clean, attacked)[i]) * (1 - float(clean[i, label])))
    share = torch.ones(6).double() if weights is None else weights.double()[LABELS]
    assert float(loss.detach()) == pytest.approx(float((share * torch.tensor(terms).double()).sum() / share.sum()))


@pytest.mark.parametrize("defense", [TradesTraining(steps=2), MartTraining(steps=2), PGDTraining(steps=2)])
def test_mixed_labels_of_one_class_each_train_as_that_class(defense: AdversarialTraining) -> None:
    shares = functional.one_hot(LABELS, 3).double()
    found = []
    for labels in (LABELS, shares):
        found.append(defense.training_loss(step(trainable(numbers(0, 3, 48)), images(), labels)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("on", ["pgd-training", "trades"])
def test_weights_are_moved_along_the_gradient_and_trained_from_where_they_were(on: Any) -> None:
    model = trainable(0.2 * numbers(0, 3, 48), 0.1 * numbers(5, 3))
    batch = step(model, images(), LABELS)
    defense = WeightPerturbation(eps=EPS, gamma=0.05, on=on, steps=4)
    loss = defense.training_loss(batch)
    weight, bias = model.weight.detach(), model.bias.detach()
    inner = TradesTraining(eps=EPS, steps=4, mode="train") if on == "trades" else PGDTraining(eps=EPS, steps=4)
    examples = inner.examples(batch)

    def outer(weight: Tensor, bias: Tensor) -> Tensor:
        attacked = examples.flatten(1) @ weight.T + bias
        if on == "pgd-training":
            return functional.cross_entropy(attacked.float(), LABELS)
        clean = images().flatten(1) @ weight.T + bias
        return functional.cross_entropy(clean, LABELS) + 6 * kl(clean.softmax(1), attacked.softmax(1)).mean()

    start = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(outer(start, bias), start)
    # The direction is that of steepest ascent: a small move along it raises the loss as the slope says.
    rise = outer(weight + 1e-3 * slope / slope.norm(), bias) - outer(weight - 1e-3 * slope / slope.norm(), bias)
    assert float(rise) / 2e-3 == pytest.approx(float(slope.norm()), rel=1e-2)
    moved = (weight + 0.05 * weight.norm() * slope / slope.norm()).requires_grad_()
    own = bias.clone().requires_grad_()
    expected = outer(moved, own)
    torch.testing.assert_close(loss, expected)
    assert float(loss.detach()) > float(outer(weight, bias))
    found = torch.autograd.grad(loss, [model.weight, model.bias])
    torch.testing.assert_close(found, torch.autograd.grad(expected, [moved, own]))


# --- free training


def free_steps(batches: list[Batch], defense: FreeTraining) -> list[Tensor]:
    seen = []
    for batch in batches:
        defense.training_loss(batch).backward()
        seen.append(batch.state["delta"].clone())
    return seen


def test_the_perturbation_follows_its_recurrence_from_batch_to_batch() -> None:
    model = trainable(0.2 * numbers(0, 3, 48))
    kept: dict[str, Tensor] = {}
    defense = FreeTraining(eps=EPS, replays=2)
    assert defense.steps_per_batch() == 2
    whole = [step(model, images_near(0.5, 0.4, 6, seed), LABELS, state=kept) for seed in (1, 1, 2)]
    short = step(model, images_near(0.5, 0.4, 4, 3), LABELS[:4], rng=streams(4), state=kept)
    batches = [*whole, short, whole[0]]
    found = free_steps(batches, defense)
    delta = torch.zeros(6, 3, 4, 4, dtype=torch.float64)
    for batch, seen in zip(batches, found, strict=True):
        count = len(batch.images)
        x = project(batch.images, delta[:count], "linf", EPS).requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x), batch.labels), x)
        delta[:count] = (delta[:count] + EPS * gradient.sign()).clamp(-EPS, EPS)
        torch.testing.assert_close(seen, delta)


# --- the guard


def test_the_guard_stops_at_a_fall_and_says_so() -> None:
    guarded = FGSMRandomStart(guard=0.2)
    assert guarded.stop([]) is None
    assert guarded.stop([0.1, 0.4, 0.35, 0.3]) is None
    assert guarded.stop([0.4, 0.25]) is None
    reason = guarded.stop([0.1, 0.5, 0.05])
    assert reason == "catastrophic overfitting: robust accuracy fell from 50.0% to 5.0%"
    assert FGSMRandomStart(guard=0.0).stop([0.5, 0.0]) is None
    assert FGSMRandomStart(guard=0.0).watched(0.1) is None
    assert FGSMRandomStart().watched(0.1) == Threat("linf", 0.1)
    assert NoisyFGSM(eps=0.5, norm="l2").watched(0.1) == Threat("l2", 0.5)
