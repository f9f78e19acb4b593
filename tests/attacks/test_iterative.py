"""BIM and MI-FGSM against closed forms, a plain transcription and the toolbox."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from closed_forms import (
    SHAPE,
    SIZE,
    Counting,
    assert_optimal,
    images_near,
    linear,
    margins,
    norms,
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

CASES: list[tuple[Attack, Norm]] = [
    (BIM(), "linf"),
    (BIM(), "l2"),
    (BIM(), "l1"),
    (MIFGSM(), "linf"),
    (MIFGSM(), "l2"),
    (MIFGSM(early_stop=False), "linf"),
]
SIZES: dict[Norm, float] = {"linf": 0.02, "l2": 0.15, "l1": 0.4}


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


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("linf", 0.3), ("l2", 0.4), ("l1", 0.4)])
@pytest.mark.parametrize("attack", [BIM(early_stop=False), MIFGSM(early_stop=False)], ids=str)
def test_reaches_the_best_on_a_linear_model(attack: Attack, norm: Norm, eps: float, targeted: bool) -> None:
    if not (norm == "l1" and isinstance(attack, MIFGSM)):
        assert_optimal(attack, norm, eps, targeted)


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


class TestSteps:
    @pytest.mark.parametrize(("attack", "norm"), CASES, ids=str)
    def test_a_tiny_gradient_gives_a_full_step(self, attack: Attack, norm: Norm) -> None:
        images, labels = images_near(0.5, 0.2, 4), torch.zeros(4, dtype=torch.int64)
        faint = linear(2, 2).float()
        faint.weight.data *= 1e-30
        faint.bias.data = torch.tensor([1.0, 0.0])
        attacked = attack.perturb(faint.eval(), images.float(), labels, Threat(norm, 0.1), streams(4))
        assert norms(attacked - images.float(), norm).tolist() == pytest.approx([0.1] * 4, rel=1e-4)

    @pytest.mark.parametrize(("attack", "norm"), CASES, ids=str)
    def test_samples_leave_when_they_are_fooled(self, attack: Attack, norm: Norm) -> None:
        plain, images = linear(13, 3), images_near(0.5, 0.3, 20)
        model, labels = Counting.of(plain, 20), plain.predict(images)
        labels[:5] = (labels[:5] + 1) % 3
        attacked = attack.perturb(model, images, labels, Threat(norm, SIZES[norm]), streams(20))
        robust = plain.predict(attacked) == labels
        forwards, backwards = attack.passes(3)
        assert 0 < int(robust.sum()) < 15
        assert model.backwards[robust].tolist() == [backwards] * int(robust.sum())
        assert float(model.forwards.max()) <= forwards
        assert not bool(robust[:5].any())
        if attack.parameters()["early_stop"]:
            assert model.forwards[:5].tolist() == [1] * 5
            assert torch.equal(attacked[:5], images[:5])
        else:
            assert model.forwards[:5].tolist() == [forwards] * 5

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_an_iterate_that_fooled_is_not_walked_away_from(self, early_stop: bool) -> None:
        class Band(Curved):
            """Class 1 where the first value lies in a band, whatever the scores say."""

            def forward(self, images: Tensor) -> Tensor:
                first = images.flatten(1)[:, 0]
                return torch.stack([0 * first, first], dim=1)

            def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
                scores = self(images)
                return scores, ((scores[:, 1] > 0.55) & (scores[:, 1] < 0.65)).long()

        images, labels = images_near(0.5, 0.01, 3), torch.zeros(3, dtype=torch.int64)
        for attack in (BIM(early_stop=early_stop), MIFGSM(early_stop=early_stop)):
            attacked = attack.perturb(Band(), images, labels, Threat("linf", 0.4), streams(3))
            assert bool((Band().predict(attacked) == 1).all())
