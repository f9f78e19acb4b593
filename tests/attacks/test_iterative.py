"""BIM and MI-FGSM against closed forms, a plain transcription and the toolbox."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from closed_forms import (
    SHAPE,
    SIZE,
    images_near,
    margins,
    streams,
)
from torch import Tensor, nn

from robbench.attacks.bim import BIM
from robbench.attacks.mi_fgsm import MIFGSM
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm, Threat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier


class Curved(Classifier):
    """A small smooth network in float64."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 30), nn.Tanh(), nn.Linear(30, 3)).double()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = 4 * self.layers(images)
        return result

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.fixture(scope="module")
def net() -> Classifier:
    return Curved().eval()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_momentum_gathers_normalized_gradients(net: Classifier, norm: Norm, decay: float) -> None:
    steps, eps = 6, 0.1
    images, labels = images_near(0.5, 0.2, 5), torch.arange(5) % 3
    attack = MIFGSM(steps=steps, decay=decay, early_stop=False)
    found = attack.perturb(net, images, labels, Threat(norm, eps, targeted=True), streams(5))
    for sample in range(5):
        x, gathered = images[sample : sample + 1], torch.zeros(1, *SHAPE, dtype=torch.float64)
        for _ in range(steps):
            point = x.clone().requires_grad_()
            loss = -nn.functional.cross_entropy(net(point), labels[sample : sample + 1])
            slope = torch.autograd.grad(loss, point)[0]
            gathered = decay * gathered + slope / slope.abs().sum()
            x = x + eps / steps * (gathered.sign() if norm == "linf" else gathered / gathered.norm())
        torch.testing.assert_close(found[sample], x[0], rtol=0, atol=1e-12)


class TestToolbox:
    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize(
        ("attack", "norm", "name", "share"),
        [
            (BIM(early_stop=False), "linf", "BasicIterativeMethod", 0.125),
            (BIM(early_stop=False), "l2", "ProjectedGradientDescentPyTorch", 0.125),
            (MIFGSM(early_stop=False), "linf", "MomentumIterativeMethod", 0.1),
            (MIFGSM(early_stop=False), "l2", "MomentumIterativeMethod", 0.1),
        ],
    )
    def test_is_the_toolboxs_attack(
        self, net: Classifier, attack: Attack, norm: Norm, name: str, share: float, targeted: bool
    ) -> None:
        net = Curved().float().eval()
        images, labels = images_near(0.5, 0.4, 12).float(), torch.arange(12) % 3
        estimator = PyTorchClassifier(net, nn.CrossEntropyLoss(), SHAPE, 3, clip_values=(0.0, 1.0), device_type="cpu")
        eps = {"linf": 0.1, "l2": 0.5}[norm]
        options = {"norm": {"linf": np.inf, "l2": 2}[norm]} if name != "BasicIterativeMethod" else {}
        theirs = getattr(evasion, name)(
            estimator, eps=eps, eps_step=share * eps, max_iter=10, targeted=targeted, verbose=False, **options
        )
        expected = torch.as_tensor(theirs.generate(images.numpy(), y=labels.numpy()))
        found = attack.perturb(net, images, labels, Threat(norm, eps, targeted), streams(12))
        # The sign of a gradient near zero hangs on rounding.
        same = (found - expected).abs() < 1e-5
        assert float(same.double().mean()) > 0.99
        before = margins(net, images, labels)
        torch.testing.assert_close(
            margins(net, found, labels) - before, margins(net, expected, labels) - before, rtol=1e-2, atol=1e-3
        )
