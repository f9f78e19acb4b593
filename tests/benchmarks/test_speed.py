"""Speed beside the toolbox's; ``pytest -n 0 tests/benchmarks --benchmark-enable --benchmark-only`` times it."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from robbench.attacks.pgd import PGD
from robbench.attacks.toolbox import toolbox_attack
from robbench.core.attack import Attack
from robbench.core.contracts import Classifier
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat

SAMPLES, EPS = 64, 0.1


class Network(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 10
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.Flatten())
        self.head = nn.Linear(2048, 10)

    def embed(self, images: Tensor) -> Tensor:
        result: Tensor = self.features(images)
        return result

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(images))
        return result


ATTACKS = {
    "native": PGD(steps=20),
    "native, no early stop": PGD(steps=20, early_stop=False),
    "toolbox": toolbox_attack("ProjectedGradientDescentPyTorch", {"max_iter": "20"}, ""),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_pgd_20(attack: Attack, benchmark: BenchmarkFixture) -> None:
    torch.manual_seed(0)
    model = Network().eval().requires_grad_(False)
    images = torch.rand(SAMPLES, 3, 32, 32)
    labels = model.predict(images)
    streams = Streams.of(torch.arange(SAMPLES), 0)
    changed = benchmark(attack.perturb, model, images, labels, Threat("linf", EPS), streams)
    assert (changed - images).abs().max() <= EPS + 1e-6
    assert (model.predict(changed) != labels).float().mean() > 0.5
