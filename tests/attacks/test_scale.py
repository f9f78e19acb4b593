"""Scaling scores moves no boundary: attacks that follow margins find it at every scale, in float32."""

from __future__ import annotations

import pytest
import torch
from closed_forms import SIZE, Linear, distances, images_near, norms, numbers, streams
from torch import Tensor

from robbench.attacks.apgd import APGD
from robbench.attacks.autoattack import AutoAttack
from robbench.attacks.carlini_wagner import CarliniWagner
from robbench.attacks.ddn import DDN
from robbench.attacks.deepfool import DeepFool
from robbench.attacks.elastic_net import ElasticNet
from robbench.attacks.fab import FAB, MinimalFAB
from robbench.attacks.fmn import FMN
from robbench.attacks.pgd import PGD
from robbench.attacks.strong import Strong
from robbench.core.attack import Attack
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat

SCALES = (1e-30, 1e-6, 1e-4, 1e2, 1e4, 1e6, 1e30)
COUNT = 8

# How much larger than the least the changes of each may be.
SMALLEST: list[tuple[Attack, Norm, float]] = [
    (CarliniWagner(search_steps=4, steps=50), "l2", 1.2),
    (DDN(), "l2", 1.01),
    (FMN(steps=60), "linf", 1.01),
    (FMN(steps=60), "l2", 1.01),
    (FMN(steps=60), "l1", 1.03),
    (DeepFool(steps=2), "linf", 1.0201),
    (DeepFool(steps=2), "l2", 1.0201),
    (ElasticNet(search_steps=4, steps=30), "l1", 1.5),
    (MinimalFAB(steps=5), "linf", 1.01),
    (MinimalFAB(steps=5), "l2", 1.01),
    (MinimalFAB(steps=5), "l1", 1.03),
]
WITHIN: list[Attack] = [
    FAB(steps=5),
    APGD("margin", steps=20),
    APGD("dlr", steps=20),
    APGD("dlr", steps=20, targets=3),
    Strong(steps=20, queries=10),
]


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Attack) else str(value)


def scaled(classes: int, scale: float) -> Linear:
    weight = numbers(21, classes, SIZE)
    return Linear((scale * weight).float(), (-scale * weight.sum(dim=1) / 2).float()).eval()


def some(classes: int, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Images for which the best other class is the nearest, their labels and distances, not too small."""
    model, images = scaled(classes, 1.0), images_near(0.5, 0.15, 200).float()
    labels = model.predict(images)
    led = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    least, nearest = distances(model.double(), images.double(), labels, norm).min(dim=1)
    index = ((led == nearest) & (least > 0.3 * least.max())).nonzero().flatten()[:COUNT]
    assert len(index) == COUNT
    return images[index], labels[index], least[index]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("attack", "norm", "most"), SMALLEST, ids=name)
def test_the_smallest_change_is_found_at_every_scale(attack: Attack, norm: Norm, most: float, classes: int) -> None:
    images, labels, least = some(classes, norm)
    for scale in SCALES:
        model = scaled(classes, scale)
        found = attack.perturb(model, images, labels, Threat(norm), streams(COUNT))
        assert bool((model.predict(found) != labels).all()), scale
        ratio = norms(found - images, norm) / least
        assert float(ratio.min()) >= 1 - 1e-4, scale
        assert float(ratio.max()) <= most, (scale, ratio)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("attack", WITHIN, ids=name)
def test_what_can_be_fooled_within_a_ball_is_at_every_scale(attack: Attack, classes: int, norm: Norm) -> None:
    images, labels, least = some(classes, norm)
    middle = float(least.median())
    near, far = least < 0.9 * middle, least > 1.001 * middle
    assert bool(near.any())
    assert bool(far.any())
    for scale in SCALES:
        model = scaled(classes, scale)
        found = attack.perturb(model, images, labels, Threat(norm, middle), streams(COUNT))
        fooled = model.predict(found) != labels
        assert bool(fooled[near].all()), scale
        assert not bool(fooled[far].any()), scale


@pytest.mark.parametrize("scale", SCALES)
def test_autoattack_fools_all_that_can_be_at_every_scale(scale: float) -> None:
    model, (images, labels, least) = scaled(10, scale), some(10, "linf")
    found = AutoAttack().perturb(model, images, labels, Threat("linf", 1.1 * float(least.max())), streams(COUNT))
    assert bool((model.predict(found) != labels).all())


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("attack", "norm", "most"), SMALLEST, ids=name)
def test_powers_of_two_change_nothing_to_speak_of(attack: Attack, norm: Norm, most: float, targeted: bool) -> None:
    if targeted and not attack.targetable:
        assert attack.refusal(Threat(norm, None, True), 3)
        return
    images, labels, _ = some(3, norm)
    given = (labels + 1) % 3 if targeted else labels
    usual, large = (
        attack.perturb(scaled(3, scale), images, given, Threat(norm, None, targeted), streams(COUNT))
        for scale in (1.0, 2.0**20)
    )
    torch.testing.assert_close(large, usual, rtol=0, atol=1e-4)


def test_cross_entropy_is_not_expected_to_and_its_attacks_say_so() -> None:
    images, labels, least = some(2, "linf")
    threat = Threat("linf", 1.1 * float(least.max()))
    usual, large = (PGD().perturb(scaled(2, scale), images, labels, threat, streams(COUNT)) for scale in (1.0, 1e4))
    assert bool((scaled(2, 1.0).predict(usual) != labels).all())
    assert bool((scaled(2, 1e4).predict(large) == labels).all())
    on_cross_entropy = {
        name
        for name, entry in Registry(installed=False).entries("attack").items()
        if entry.cls(**entry.mark.preset).losses == ("ce",)  # type: ignore[attr-defined]
    }
    assert on_cross_entropy == {"fgsm", "fgm", "metric-fgm", "bim", "mi-fgsm", "pgd", "apgd", "noise-optimization"}
    for name in on_cross_entropy:
        words = " ".join((Registry(installed=False).entry("attack", name).cls.__doc__ or "").lower().split())
        assert any(word in words for word in ("confident scores", "scale of the scores", "scores lie more", "weak"))
