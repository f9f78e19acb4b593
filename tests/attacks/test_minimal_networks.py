"""Attacks that look for the smallest change on a small network, beside the toolbox's and each other."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import pytest
import torch
from closed_forms import assert_allowed, norms, streams
from networks import TwoParts
from torch import Tensor, nn
from torch.nn import functional

from robbench.attacks.carlini_wagner import CarliniWagner
from robbench.attacks.ddn import DDN
from robbench.attacks.deepfool import DeepFool
from robbench.attacks.elastic_net import ElasticNet
from robbench.attacks.fmn import FMN
from robbench.attacks.sigma_zero import SigmaZero
from robbench.attacks.toolbox import toolbox_attack
from robbench.core.attack import Attack
from robbench.core.threat_model import Norm, Threat

CW = CarliniWagner(search_steps=6)


class DigitNet(TwoParts):
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(256, 10)


@pytest.fixture(scope="module")
def trained() -> tuple[DigitNet, Tensor, Tensor]:
    """A network for 8 × 8 digits, many of whose values lie at an end of the box, and images that it gets right."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitNet()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(5):
            for part in torch.randperm(1400).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[part]), labels[part]).backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    images, labels = images[1400:], labels[1400:]
    right = model.predict(images) == labels
    assert float(right.double().mean()) > 0.85
    return model, images[right][:16], labels[right][:16]


def sizes(trained: tuple[DigitNet, Tensor, Tensor], attack: Attack, norm: Norm, targeted: bool = False) -> Tensor:
    """Sizes of the changes, infinite where the model was not fooled."""
    model, images, labels = trained
    given = (labels + 1) % 10 if targeted else labels
    found = attack.perturb(model, images, given, Threat(norm, None, targeted), streams(len(images)))
    assert_allowed(images, found, Threat(norm))
    decisions = model.predict(found)
    fooled = decisions == given if targeted else decisions != given
    return torch.where(fooled, norms(found - images, norm), torch.inf)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (CW, "CarliniL2Method", {"max_iter": 10}),
        (DeepFool(), "DeepFool", {"epsilon": 0.02}),
    ],
    ids=["carlini-wagner", "deepfool"],
)
def test_median_distance_is_no_larger_than_the_toolboxs(
    trained: tuple[DigitNet, Tensor, Tensor], ours: Attack, theirs: str, options: dict[str, object]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sizes(trained, toolbox_attack(theirs, options, "test"), "l2")
    found = sizes(trained, ours, "l2")
    assert bool(found.isfinite().all())
    assert float(found.median()) <= 1.05 * float(other.median())


def test_all_agree_on_how_far_the_boundary_is(trained: tuple[DigitNet, Tensor, Tensor]) -> None:
    attacks = [CW, DDN(), FMN(), DeepFool()]
    found = torch.stack([sizes(trained, attack, "l2") for attack in attacks])
    assert bool(found.isfinite().all())
    best = found.amin(dim=0)
    assert bool((found.median(dim=1).values <= 1.1 * best.median()).all()), found.median(dim=1).values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("steps", [33, 100])
def test_sigma_zero_needs_no_more_changes_than_the_reference(
    trained: tuple[DigitNet, Tensor, Tensor], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("adv_lib.utils", reason="compares with adv-lib, which is not installed")
    monkeypatch.setitem(sys.modules, "visdom", ModuleType("visdom"))  # its loggers ask for it, its attacks do not
    reference = importlib.import_module("adv_lib.attacks").sigma_zero
    model, images, labels = trained
    theirs = reference(model, images, labels, num_steps=steps)
    fooled = model.predict(theirs) != labels
    found = sizes(trained, SigmaZero(steps=steps), "l0")
    assert float(found.isfinite().double().mean()) >= float(fooled.double().mean())
    other = norms(theirs - images, "l0")
    assert float(found.median()) <= float(other[fooled].median())
    assert float(found[fooled].mean()) <= 1.1 * float(other[fooled].mean())


def test_each_is_best_in_its_own_norm(trained: tuple[DigitNet, Tensor, Tensor]) -> None:
    model, images, labels = trained
    order: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
    found = [FMN().perturb(model, images, labels, Threat(norm), streams(len(images))) for norm in order]
    for norm in order:
        medians = [float(norms(changed - images, norm).median()) for changed in found]
        assert min(medians) == medians[order.index(norm)], (norm, medians)
    l1 = sizes(trained, ElasticNet(search_steps=7, steps=60), "l1")
    assert bool(l1.isfinite().all())
    assert float(l1.median()) < float(norms(found[1] - images, "l1").median())


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(CW, "l2"), (DDN(), "l2"), (FMN(), "linf"), (FMN(), "l0"), (SigmaZero(steps=100), "l0")],
)
def test_targets_are_reached_and_are_further_off(
    trained: tuple[DigitNet, Tensor, Tensor], attack: Attack, norm: Norm
) -> None:
    free, targeted = sizes(trained, attack, norm), sizes(trained, attack, norm, targeted=True)
    assert float(targeted.isfinite().double().mean()) > 0.9
    assert float(targeted.median()) > float(free.median())
