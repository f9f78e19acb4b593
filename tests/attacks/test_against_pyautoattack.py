"""Our attacks against those of the authors' own package, on networks trained here."""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal

import pytest
import torch
from closed_forms import assert_allowed, streams
from torch import Tensor, nn
from torch.nn import functional

from robbench.attacks.apgd import APGD
from robbench.attacks.autoattack import AutoAttack
from robbench.attacks.fab import FAB
from robbench.attacks.pgd import PGD
from robbench.attacks.square import Square
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.threat_model import Norm, Threat

pyautoattack = pytest.importorskip(
    "pyautoattack", reason="compares with the package pyautoattack, which is not installed (extra: compare)"
)

pytestmark = pytest.mark.slow

Version = Literal["standard", "plus", "rand"]
COUNT = 100
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 2.0, "l1": 20.0}
PARTS: dict[str, Attack] = {
    "apgd-ce": APGD(),
    "apgd-dlr": APGD("dlr"),
    "apgd-t": APGD("dlr", targets=9),
    "fab": FAB(targets=0),
    "fab-t": FAB(),
    "square": Square(queries=1000),
}


class SmallNet(Classifier):
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(images))
        return result

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.body(images - 0.5)
        return result


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, (32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].contiguous(), torch.as_tensor(found.target)[order].long()


@functools.cache
def trained(norm: Norm | None) -> tuple[Classifier, Tensor, Tensor]:
    """A network, trained against short PGD where a norm is given, with test images on which it is right."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, epochs = SmallNet(), 8 if norm is None else 12
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for epoch in range(epochs):
            for batch in torch.randperm(1400).split(64):
                x, y = images[batch], labels[batch]
                if norm is not None:
                    attack, threat = PGD(steps=2, rel_step=0.75, early_stop=False), Threat(norm, EPS[norm])
                    x = attack.perturb(net, x, y, threat, streams(len(y), epoch))
                optimizer.zero_grad()
                functional.cross_entropy(net(x), y).backward()
                optimizer.step()
    net.eval().requires_grad_(False)
    right = (net.predict(images[1400:]) == labels[1400:]).nonzero().flatten()[:COUNT] + 1400
    assert len(right) == COUNT
    return net, images[right], labels[right]


def theirs(
    net: Classifier, images: Tensor, labels: Tensor, norm: Norm, part: str | None, version: Version = "standard"
) -> Tensor:
    """Which samples their attack leaves, bool, shape ``(N,)``."""
    options: dict[str, Any] = {"version": "custom", "attacks": [part]} if part else {"version": version}
    attack = pyautoattack.AutoAttack(net, eps=EPS[norm], norm=NAMES[norm], device="cpu", seed=0, **options)
    attack.verbose = False
    if part:
        for stage in (attack.apgd, attack.apgd_targeted, attack.fab):
            stage.n_restarts = 1
        attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = 9
        attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = norm == "l1"
        attack.square.n_queries = 1000
    elif norm == "l1":  # which they switch on in the standard version alone
        attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
    logging.disable(logging.CRITICAL)
    try:
        attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=COUNT)
    finally:
        logging.disable(logging.NOTSET)
    return net.predict(attacked) == labels


def assert_agree(
    net: Classifier,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
    ours: Attack,
    part: str | None,
    version: Version = "standard",
) -> None:
    threat = Threat(norm, EPS[norm])
    attacked = ours.perturb(net, images, labels, threat, streams(len(labels)))
    assert_allowed(images, attacked, threat)
    left, expected = net.predict(attacked) == labels, theirs(net, images, labels, norm, part, version)
    print(f"{part or version}, {norm}: {int(left.sum())} robust against ours, {int(expected.sum())} against theirs")
    # Random starts differ; nothing else may.
    assert abs(int(left.sum()) - int(expected.sum())) <= 2
    assert int((left != expected).sum()) <= 4


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_parts(norm: Norm, part: str) -> None:
    net, images, labels = trained("l2" if norm == "l1" else norm)
    assert_agree(net, images, labels, norm, PARTS[part], part)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("defended", [False, True])
def test_autoattack(norm: Norm, defended: bool) -> None:
    net, images, labels = trained(("l2" if norm == "l1" else norm) if defended else None)
    assert_agree(net, images, labels, norm, AutoAttack(), None)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["plus", "rand"])
def test_the_other_versions(norm: Norm, version: Version) -> None:
    net, images, labels = trained("l2" if norm == "l1" else norm)
    some = slice(0, 30 if version == "rand" else 60)
    assert_agree(net, images[some], labels[some], norm, AutoAttack(version), None, version)


class Noisy(Classifier):
    """A network under Gaussian noise that is drawn anew at every call, by the global generator as theirs do."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner, self.num_classes = inner, inner.num_classes

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner(images + 0.3 * torch.randn_like(images))
        return result

    def embed(self, images: Tensor) -> Tensor:
        return self.inner.embed(images)


def test_rand_on_a_random_model() -> None:
    """Theirs stops at the first lucky draw, so that both are judged by how often fresh draws are fooled."""
    net, images, labels = trained("linf")
    model, threat, shares = Noisy(net).eval(), Threat("linf", EPS["linf"]), {}
    images, labels = images[:30], labels[:30]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attack = pyautoattack.AutoAttack(model, eps=threat.eps, norm="Linf", device="cpu", seed=0, version="rand")
        attack.verbose = False
        logging.disable(logging.CRITICAL)
        try:
            found = {"theirs": attack.run_standard_evaluation(images, labels, batch_size=COUNT)[0]}
        finally:
            logging.disable(logging.NOTSET)
        found["ours"] = AutoAttack("rand").perturb(model, images, labels, threat, streams(len(labels)))
        found["standard"] = APGD().perturb(model, images, labels, threat, streams(len(labels)))
        for name, attacked in found.items():
            draws = torch.stack([model.predict(attacked) != labels for _ in range(50)])
            shares[name] = float(draws.double().mean())
    print(shares)
    assert shares["ours"] > shares["theirs"] - 0.02
    assert shares["ours"] > shares["standard"]
