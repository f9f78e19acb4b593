"""Attacks that pass on where they ended: starts are taken, ends and the classes that came nearest are told."""

from __future__ import annotations

import pytest
import torch
from closed_forms import (
    Constant,
    Counting,
    Linear,
    assert_allowed,
    images_near,
    largest_gain,
    linear,
    margins,
    numbers,
    streams,
)
from subjects import exact
from torch import Tensor
from traps import Misleading

from robbench.attacks._ensemble import Anew, SubstituteAttack, chain, passes_of_chain
from robbench.attacks.apgd import APGD
from robbench.attacks.ascent import MomentumAscent
from robbench.attacks.bim import BIM
from robbench.attacks.ddn import DDN
from robbench.attacks.fgm import FGM
from robbench.attacks.mi_fgsm import MIFGSM
from robbench.attacks.pgd import PGD
from robbench.attacks.square import Square
from robbench.attacks.strong import Strong
from robbench.attacks.thorough import Thorough
from robbench.core.attack import Attack
from robbench.core.best_points import BestPoints
from robbench.core.threat_model import Norm, Threat

COUNT = 8
ATTACKS: dict[str, Attack] = {
    "ascent": MomentumAscent(steps=4),
    "ascent towards": MomentumAscent(steps=4, targets=2, start="corner"),
    "apgd": APGD("margin", steps=4),
    "apgd towards": APGD("dlr", steps=4, targets=2),
    "pgd": PGD(steps=4, restarts=2),
    "bim": BIM(steps=4),
    "mi-fgsm": MIFGSM(steps=4),
    "square": Square(queries=6),
    "fgm": FGM(),
    "through": SubstituteAttack(MomentumAscent(steps=4), linear(3, 4)),
}


class Listening(Linear):
    """Remembers all scores that it gave, each with the image that it was asked about."""

    def __init__(self, model: Linear) -> None:
        super().__init__(model.weight.detach(), model.bias.detach())
        self.heard: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        self.heard.append((images.detach().clone(), scores.detach().clone()))
        return scores


def given(eps: float = 0.02, norm: Norm = "linf") -> tuple[Linear, Tensor, Tensor, Threat]:
    model, images = linear(3, 4), images_near(0.5, 0.4, COUNT)
    return model, images, model.predict(images), Threat(norm, eps)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_says_where_it_ended(name: str) -> None:
    model, images, labels, threat = given()
    points = ATTACKS[name].advance(model, images, labels, threat, streams(COUNT))
    assert_allowed(images, points.images, threat)
    assert torch.equal(points.fooled, model.predict(points.images) != labels)
    assert 0 < int(points.fooled.sum()) < COUNT


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "through"])
def test_the_lead_of_a_class_is_the_largest_that_was_seen(name: str) -> None:
    model, images, labels, threat = given(1e-5)  # so small that all samples stay
    listening = Listening(model)
    points = ATTACKS[name].advance(listening, images, labels, threat, streams(COUNT))
    seen = [scores - scores.gather(1, labels[:, None]) for _, scores in listening.heard]
    torch.testing.assert_close(points.lead, torch.stack(seen).amax(dim=0))


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_known_before_stays_known(name: str) -> None:
    model, images, labels, threat = given(0.002)
    before = torch.full((COUNT, 4), 7.0, dtype=images.dtype)
    start = BestPoints(images, images.new_zeros(COUNT), torch.zeros(COUNT, dtype=torch.bool), before)
    points = ATTACKS[name].advance(model, images, labels, threat, streams(COUNT), start)
    assert torch.equal(points.lead, before)
    assert bool((before == 7).all())


@pytest.mark.parametrize("name", ["ascent", "apgd", "pgd", "bim", "mi-fgsm", "square"])
def test_an_attack_goes_on_from_the_start_that_it_is_given(name: str) -> None:
    model, images, labels, threat = given(0.002)
    first = Anew(MomentumAscent(steps=30)).advance(model, images, labels, threat, streams(COUNT))
    listening = Listening(model)
    ATTACKS[name].advance(listening, images, labels, threat, streams(COUNT), first)
    torch.testing.assert_close(listening.heard[0][0], first.images)


def test_what_must_begin_anew_does() -> None:
    model, images, labels, threat = given(0.002)
    first = MomentumAscent(steps=30).advance(model, images, labels, threat, streams(COUNT))
    alone = Square(queries=6).advance(model, images, labels, threat, streams(COUNT))
    anew = Anew(Square(queries=6)).advance(model, images, labels, threat, streams(COUNT), first)
    assert torch.equal(anew.images, alone.images)
    torch.testing.assert_close(anew.lead, torch.maximum(first.lead, alone.lead))


def test_classes_that_came_nearest_are_made_for_first() -> None:
    model, images, labels, threat = given(0.3)
    lead = -numbers(5, COUNT, 4).abs()
    start = BestPoints(images, images.new_zeros(COUNT), torch.zeros(COUNT, dtype=torch.bool), lead)
    points = MomentumAscent(steps=30, targets=1).advance(model, images, labels, threat, streams(COUNT), start)
    nearest = lead.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    slopes = model.weight[nearest] - model.weight[labels]
    moved = (points.images - images).flatten(1)
    # Every step of a linear model's ascent goes along one gradient, and the box does not turn signs.
    assert bool((moved * slopes.sign() >= 0).all())


@pytest.mark.parametrize(("norm", "eps", "share"), [("linf", 0.002, 0.999), ("l2", 0.01, 0.99), ("l1", 0.05, 0.9)])
def test_ascent_reaches_the_best_point_of_a_linear_model(norm: Norm, eps: float, share: float) -> None:
    model, images, _, threat = given(eps, norm)
    two = Linear(model.weight[:2].detach(), model.bias[:2].detach()).eval()
    labels = two.predict(images)
    slopes = two.weight[1 - labels] - two.weight[labels]
    points = MomentumAscent(steps=60).advance(two, images, labels, threat, streams(COUNT))
    possible = largest_gain(slopes, images, norm, eps)
    gained = points.value + margins(two, images, labels)
    left = ~points.fooled
    assert int(left.sum()) >= COUNT // 2
    assert bool((gained[left] <= possible[left] * 1.0001).all())
    assert bool((gained[left] >= share * possible[left]).all())


def test_few_values_are_changed_in_l0_and_the_best_ones() -> None:
    model, images, labels, threat = given(3, "l0")
    two = Linear(model.weight[:2].detach(), model.bias[:2].detach()).eval()
    labels = two.predict(images)
    slopes = two.weight[1 - labels] - two.weight[labels]
    room = torch.where(slopes > 0, 1 - images.flatten(1), images.flatten(1))
    gain = (slopes.abs() * room).topk(3, dim=1).values.sum(dim=1)
    scores = two(images)
    margins = scores.gather(1, labels[:, None])[:, 0] - scores.gather(1, 1 - labels[:, None])[:, 0]
    points = MomentumAscent(steps=100, rel_step=2).advance(two, images, labels, threat, streams(COUNT))
    assert_allowed(images, points.images, threat)
    assert not bool((points.fooled & (gain < margins)).any())
    assert bool(points.fooled[gain > 1.5 * margins].all())


def test_a_chain_drops_what_is_fooled_and_costs_what_it_says() -> None:
    model = Constant(numbers(0, 4, 48), torch.arange(4).double().flip(0)).eval()
    images = images_near(0.5, 0.4, COUNT)
    parts = {"a": MomentumAscent(steps=3), "b": Anew(Square(queries=5)), "c": MomentumAscent(steps=2)}
    counting = Counting.of(model, COUNT)
    chain(parts, counting, images, model.predict(images), Threat("linf", 0.1), streams(COUNT))
    forwards, backwards = passes_of_chain(parts, 4)
    assert (forwards, backwards) == (4 + 5 + 3, 5)
    assert counting.forwards.tolist() == [forwards] * COUNT


def test_a_chain_is_the_same_in_any_batch() -> None:
    model, images, labels, threat = given(0.01)
    parts = {"a": MomentumAscent(steps=3), "b": Anew(Square(queries=5)), "c": MomentumAscent(steps=2, targets=2)}
    whole = chain(parts, model, images, labels, threat, streams(COUNT))
    for sample in range(COUNT):
        one = torch.tensor([sample])
        alone = chain(parts, model, images[one], labels[one], threat, streams(COUNT)[one])
        torch.testing.assert_close(alone, whole[one])


def test_a_peer_that_is_fooled_is_not_the_model() -> None:
    model, images, labels, threat = given(0.3)
    deaf = Constant(model.weight.detach(), torch.nn.functional.one_hot(labels[:1], 4)[0].double()).eval()
    labels = deaf.predict(images)
    points = SubstituteAttack(PGD(), model).advance(deaf, images, labels, threat, streams(COUNT))
    assert not bool(points.fooled.any())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.15), ("l1", 0.7), ("l0", 4)])
def test_thorough_finds_by_search_what_strong_does_not(norm: Norm, eps: float) -> None:
    model, images, threat = Misleading(exact(4)), images_near(0.5, 0.4, 40), Threat(norm, eps)
    labels = model.predict(images)
    short, long = (
        attack.perturb(model, images, labels, threat, streams(40))
        for attack in (Strong(), Thorough(queries=1500, steps=10, rounds=1))
    )
    assert_allowed(images, long, threat)
    fooled = [int((model.predict(found) != labels).sum()) for found in (short, long)]
    assert fooled[1] > fooled[0]


def test_what_looks_for_the_smallest_change_is_no_part_of_a_chain() -> None:
    model, images, labels, threat = given(0.01, "l2")
    with pytest.raises(ValueError, match="ddn: looks for the smallest change"):
        chain({"ddn": DDN(), "pgd": PGD()}, model, images, labels, threat, streams(COUNT))


@pytest.mark.parametrize("part", [FGM(), MIFGSM(steps=4), PGD(steps=3), SubstituteAttack(PGD(steps=3), linear(3, 4))])
def test_parts_that_say_nothing_of_their_ends_are_looked_at_once_more(part: Attack) -> None:
    model = Constant(numbers(0, 4, 48), torch.arange(4).double().flip(0)).eval()
    images = images_near(0.5, 0.4, COUNT)
    counting = Counting.of(model, COUNT)
    parts = {"a": part, "b": Anew(part)}
    chain(parts, counting, images, model.predict(images), Threat("linf", 0.1), streams(COUNT))
    forwards, _ = passes_of_chain(parts, 4)
    asked_elsewhere = 8 if isinstance(part, SubstituteAttack) else 0
    assert counting.forwards.tolist() == [forwards - asked_elsewhere] * COUNT
