"""What attacks of any settings are held to on models in closed form; the conformance suite checks their defaults."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from closed_forms import (
    SIZE,
    Constant,
    Counting,
    Linear,
    assert_allowed,
    images_near,
    linear,
    norms,
    numbers,
    streams,
)

from robbench.attacks._minimum_norm import MinimalNormAttack
from robbench.attacks.apgd import APGD
from robbench.attacks.bim import BIM
from robbench.attacks.carlini_wagner import CarliniWagner
from robbench.attacks.color_jitter import ColorJitter
from robbench.attacks.ddn import DDN
from robbench.attacks.deepfool import DeepFool
from robbench.attacks.elastic_net import ElasticNet
from robbench.attacks.fab import FAB, MinimalFAB
from robbench.attacks.fgm import FGM
from robbench.attacks.fmn import FMN
from robbench.attacks.hop_skip_jump import HopSkipJump
from robbench.attacks.mi_fgsm import MIFGSM
from robbench.attacks.noise import GaussianNoise, UniformNoise
from robbench.attacks.noise_optimization import NoiseOptimization
from robbench.attacks.none import NoAttack
from robbench.attacks.perturbation import Perturbation
from robbench.attacks.pgd import PGD
from robbench.attacks.pixel_corruption import PixelCorruption
from robbench.attacks.rotation import Rotation
from robbench.attacks.sigma_zero import SigmaZero
from robbench.attacks.spatial import Spatial
from robbench.attacks.square import Square
from robbench.core.attack import Attack
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.query_counter import Oracle

STILL = PGD(random_start=False, early_stop=False)
BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")
IN_A_BALL: list[tuple[Attack, tuple[Norm, ...]]] = [
    (FGM(), BALLS),
    (PGD(), ("linf", "l2")),
    (PGD(restarts=2, steps=3), ("l1",)),
    (STILL, ("l2",)),
    (UniformNoise(), ("linf",)),
    (UniformNoise(signs=True), ("linf",)),
    (GaussianNoise(), ("l2",)),
    (BIM(), BALLS),
    (MIFGSM(), ("linf", "l2")),
    (MIFGSM(early_stop=False), ("linf",)),
    *((APGD(loss, steps=7, targets=targets), BALLS) for loss in ("ce", "margin", "dlr") for targets in (0, 3)),
    (FAB(steps=3, restarts=2), BALLS),
    (Square(queries=80), BALLS),
]
FREE: list[Attack] = [
    NoAttack(),
    GaussianNoise(),
    ColorJitter(),
    Rotation(),
    PixelCorruption(pixels=3),
    Perturbation(pixels=3),
    Spatial(rotations=3),
]
MINIMAL: list[tuple[Attack, tuple[Norm, ...]]] = [
    (DeepFool(steps=10), ("l2", "linf")),
    (CarliniWagner(search_steps=4, steps=20), ("l2",)),
    (DDN(steps=30), ("l2",)),
    (FMN(steps=30), (*BALLS, "l0")),
    (ElasticNet(search_steps=4, steps=15), ("l1",)),
    (SigmaZero(steps=30), ("l0",)),
    (MinimalFAB(steps=3), BALLS),
    (HopSkipJump(iterations=4, initial_queries=30), ("l2", "linf")),
]
SIZES: dict[Norm, float] = {"linf": 0.02, "l2": 0.15, "l1": 0.4}
"""Within which attacks fool some of the images and not others."""
BOUNDED = [(attack, Threat(norm, SIZES[norm])) for attack, norms in IN_A_BALL for norm in norms]
EVERY = [
    *BOUNDED,
    *((attack, Threat("none")) for attack in FREE),
    *((attack, Threat(norm)) for attack, norms in MINIMAL for norm in norms),
    (NoiseOptimization(steps=5), Threat("l1", None, targeted=True)),
]
# Of the starts that FAB draws, none leads further on a linear model than the first, which is the image.
DRAWLESS = (NoAttack, FGM, BIM, MIFGSM, FAB, MinimalFAB, MinimalNormAttack, NoiseOptimization, Spatial)

every_attack = pytest.mark.parametrize(("attack", "threat"), EVERY, ids=str)
bounded_attacks = pytest.mark.parametrize(("attack", "threat"), BOUNDED, ids=str)


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "count"), [(2, 1), (3, 9), (10, 5), (3, 0)])
def test_results_are_allowed_and_nothing_else_changes(
    attack: Attack, threat: Threat, dtype: torch.dtype, classes: int, count: int
) -> None:
    model = linear(2, classes).to(dtype).requires_grad_(True)
    images = images_near(0.5, 0.5, count).to(dtype)
    labels = (model.predict(images) + threat.targeted) % classes
    before = images.clone(), labels.clone(), model.weight.clone(), torch.get_rng_state()
    with torch.no_grad():
        attacked = attack.perturb(model, images, labels, threat, streams(count))
        assert not torch.is_grad_enabled()
    assert_allowed(images, attacked, threat)
    assert all(map(torch.equal, before, (images, labels, model.weight, torch.get_rng_state())))
    assert model.weight.grad is None
    assert not model.training
    assert not attacked.requires_grad
    assert not images.requires_grad
    assert torch.equal(attacked, images) == (isinstance(attack, NoAttack) or not count)


@bounded_attacks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_zero_changes_nothing_to_the_last_bit(attack: Attack, threat: Threat, dtype: torch.dtype) -> None:
    model, images = linear(2, 3).to(dtype), images_near(0.5, 0.5, 9).to(dtype)
    attacked = attack.perturb(model, images, torch.arange(9) % 3, Threat(threat.norm, 0.0), streams(9))
    assert torch.equal(attacked, images)


@bounded_attacks
@pytest.mark.parametrize("eps", [0.01, 1.0, 30.0])
def test_float32_stays_in_the_ball_of_large_images(attack: Attack, threat: Threat, eps: float) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = numbers(0, 3, 3072).float()
    model = Linear(weight, -weight.sum(dim=1) / 2 + torch.tensor([1e3, 0, 0])).eval()
    labels, within = model.predict(images), Threat(threat.norm, eps)
    assert_allowed(images, attack.perturb(model, images, labels, within, streams(4)), within)


@every_attack
@pytest.mark.parametrize("kind", [Constant, Linear])
@pytest.mark.parametrize("classes", [2, 10])
def test_models_without_a_slope_keep_their_decision(
    attack: Attack, threat: Threat, kind: type[Linear], classes: int
) -> None:
    model = kind(torch.zeros(classes, SIZE).double(), torch.eye(classes).double()[0]).eval()
    images, labels = images_near(0.5, 0.5, 6), torch.zeros(6, dtype=torch.int64)
    attacked = attack.perturb(model, images, labels, threat, streams(6))
    assert_allowed(images, attacked, threat)
    assert bool((model.predict(attacked) == 0).all())
    if (isinstance(attack, (*DRAWLESS, HopSkipJump)) or attack == STILL) and not threat.targeted:
        assert torch.equal(attacked, images)


@every_attack
def test_batch_and_order_change_nothing_and_streams_decide_what_is_drawn(attack: Attack, threat: Threat) -> None:
    count = 130
    model, images, rng = linear(11, 3), images_near(0.5, 0.5, count), streams(count)
    labels = model.predict(images)
    whole = attack.perturb(model, images, labels, threat, rng)
    assert torch.equal(whole, attack.perturb(model, images, labels, threat, rng))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    for index in (*order[:3].split(1), *order[:21].split(7), *order.split(128)):
        part = attack.perturb(model, images[index], labels[index], threat, rng[index])
        torch.testing.assert_close(part, whole[index], rtol=0, atol=1e-9 if threat.eps is None else 1e-10)
        assert torch.equal(model.predict(part), model.predict(whole[index]))
    same = torch.equal(whole, attack.perturb(model, images, labels, threat, streams(count, 1)))
    assert same == (isinstance(attack, DRAWLESS) or attack == STILL)


@every_attack
def test_passes_stay_within_what_is_announced_and_gradients_are_for_white_box_attacks(
    attack: Attack, threat: Threat
) -> None:
    plain, images = linear(13, 3), images_near(0.5, 0.3, 8)
    model = Oracle(plain, 8)
    attack.perturb(model, images, (plain.predict(images) + threat.targeted) % 3, threat, streams(8))
    forwards, backwards = attack.passes(3)
    assert float(model.forwards.max()) <= forwards
    assert float(model.backwards.max()) <= backwards
    assert (float(model.backwards.max()) > 0) == attack.white_box


LOOPS: list[tuple[Attack, Norm]] = [
    *((attack, norm) for attack, norms in IN_A_BALL if isinstance(attack, BIM | MIFGSM | APGD) for norm in norms),
    *((APGD(steps=steps, restarts=restarts), norm) for steps, restarts in ((3, 3), (1, 1)) for norm in BALLS),
]


@pytest.mark.parametrize(("attack", "norm"), LOOPS, ids=str)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_sample_costs_what_is_announced_until_it_is_fooled(attack: Attack, norm: Norm, classes: int) -> None:
    plain, images = linear(13, classes), images_near(0.5, 0.3, 20)
    model, labels = Counting.of(plain, 20), plain.predict(images)
    labels[:5] = (labels[:5] + 1) % classes
    threat = Threat(norm, {"linf": 0.01, "l2": 0.08, "l1": 0.3}[norm])
    attacked = attack.perturb(model, images, labels, threat, streams(20))
    robust = plain.predict(attacked) == labels
    forwards, backwards = attack.passes(classes)
    assert bool(robust[5:].any())
    assert not bool(robust[:5].any())
    assert float(model.forwards.max()) <= forwards
    assert model.backwards[robust].tolist() == [backwards] * int(robust.sum())
    early = bool(attack.parameters()["early_stop"])
    assert bool((model.forwards[:5] < forwards).all()) == early
    if isinstance(attack, APGD):
        assert model.forwards[robust].tolist() == [forwards] * int(robust.sum())
    elif early:
        assert model.forwards[:5].tolist() == [1] * 5
        assert torch.equal(attacked[:5], images[:5])


@pytest.mark.parametrize("attack", [FGM(), BIM(), MIFGSM(), MIFGSM(early_stop=False)], ids=str)
@pytest.mark.parametrize("norm", BALLS)
def test_a_tiny_gradient_counts_in_full(attack: Attack, norm: Norm) -> None:
    if norm == "l1" and isinstance(attack, MIFGSM):
        return
    images, labels = images_near(0.5, 0.2, 4).float(), torch.zeros(4, dtype=torch.int64)
    faint = Linear(1e-30 * linear(2, 2).weight.float(), torch.tensor([1.0, 0.0])).eval()
    attacked = attack.perturb(faint, images, labels, Threat(norm, 0.1), streams(4))
    assert norms(attacked - images, norm).tolist() == pytest.approx([0.1] * 4, rel=1e-4)


def test_attacks_are_registered_with_what_they_are() -> None:
    white, black, within = "white_box bounded targetable", "black_box bounded targetable", "bounded"
    expected: dict[str, tuple[Attack, tuple[str, ...], str]] = {
        "fgsm": (FGM(), BALLS, white),
        "fgm": (FGM(), BALLS, white),
        "pgd": (PGD(), BALLS, white),
        "bim": (BIM(), BALLS, white),
        "mi-fgsm": (MIFGSM(), ("linf", "l2"), white),
        "apgd": (APGD(), BALLS, white),
        "apgd-dlr": (APGD("dlr"), BALLS, white),
        "apgd-t": (APGD("dlr", targets=9), BALLS, white),
        "fab": (FAB(), BALLS, white),
        "square": (Square(), BALLS, black),
        "gaussian-noise": (GaussianNoise(), ("none", "l2"), within),
        "uniform-noise": (UniformNoise(), ("linf",), within),
        "none": (NoAttack(), ("none",), within),
        "spatial": (Spatial(), ("none",), "black_box bounded"),
        "color-jitter": (ColorJitter(), ("none",), within),
        "rotation": (Rotation(), ("none",), within),
        "pixel-corruption": (PixelCorruption(), ("none",), within),
        "perturbation": (Perturbation(), ("none",), within),
        "fab-minimal": (MinimalFAB(), BALLS, "white_box targetable"),
        "deepfool": (DeepFool(), ("l2", "linf"), "white_box"),
        "carlini-wagner": (CarliniWagner(), ("l2",), "white_box targetable"),
        "ddn": (DDN(), ("l2",), "white_box targetable"),
        "fmn": (FMN(), (*BALLS, "l0"), "white_box targetable"),
        "elastic-net": (ElasticNet(), ("l1",), "white_box targetable"),
        "sigma-zero": (SigmaZero(), ("l0",), "white_box targetable"),
        "noise-optimization": (NoiseOptimization(), ("l1",), "white_box targetable"),
    }
    entries = Registry(installed=False).entries("attack")
    found = {}
    for name in expected:
        made = cast(Attack, entries[name].cls.make(entries[name].mark.preset, name))
        traits = [trait for trait in ("white_box", "black_box", "bounded", "targetable") if getattr(made, trait)]
        found[name] = (made, entries[name].mark.norms, " ".join(traits))
    assert found == expected
