"""Deterministic algorithms: asked for, recorded, part of no key, and enough for every built-in attack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_forms import streams
from networks import TwoParts
from torch import nn

from robbench.api.evaluation import evaluate
from robbench.api.report import Report
from robbench.core.attack import Attack
from robbench.core.device import WORKSPACE, prepare_device
from robbench.core.registry import Registry
from robbench.core.threat_model import Norm, Threat

REGISTRY = Registry(installed=False)
SIZES: dict[Norm, float | None] = {"linf": 0.1, "l2": 1.0, "l1": 8.0, "l0": 6.0, "none": None}
SHORT = {"steps": 3, "queries": 12, "search_steps": 2, "draws": 16, "iterations": 2}
# Of the ensemble the parts are tried by themselves; transfer works through other models.
OTHERS = {"autoattack", "transfer"}
NAMES = [
    (name, norm)
    for name, entry in REGISTRY.entries("attack").items()
    for norm in entry.mark.norms
    if name not in OTHERS
]


class Pooling(TwoParts):
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 10)


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("restored")
def test_algorithms_are_left_alone_unless_asked() -> None:
    prepare_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ
    prepare_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"
    os.environ[WORKSPACE] = ":16:8"
    prepare_device("cpu", deterministic=True)
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_every_attack_runs_under_deterministic_algorithms(name: str, norm: Norm) -> None:
    entry = REGISTRY.entry("attack", name)
    known = {key: value for key, value in SHORT.items() if key in entry.cls.field_names()}
    attack = entry.cls.make({**entry.mark.preset, **known}, name)
    assert isinstance(attack, Attack)
    model, images = Pooling().eval().requires_grad_(False), torch.rand(3, 3, 32, 32, generator=torch.manual_seed(1))
    labels, threat = model.predict(images), Threat(norm, SIZES[norm] if attack.bounded else None)
    if attack.refusal(threat, 10):
        labels, threat = (labels + 1) % 10, Threat(norm, threat.eps, True)
    usual = attack.perturb(model, images, labels, threat, streams(3))
    prepare_device("cpu", deterministic=True)
    assert torch.equal(attack.perturb(model, images, labels, threat, streams(3)), usual)


@pytest.mark.usefixtures("no_figures", "one_core")
@pytest.mark.parametrize("live", [True, False])
def test_a_run_records_it_and_keys_are_the_same(tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
    )
    rng = np.random.default_rng(0)
    data = rng.random((12, 1, 8, 8), dtype=np.float32), rng.integers(0, 2, 12)
    np.savez("images.npz", images=data[0], labels=data[1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    torch.save(net.state_dict(), "net.pt")

    def made(deterministic: bool, out: str) -> Report:
        model = net if live else "net.py:make"
        weights = "" if live else "net.pt"
        attacks = ("pgd[steps=2]@0.1", "square[queries=5]@l2:1")
        return evaluate(
            model,
            data if live else "images.npz",
            attacks=attacks,
            weights=weights,
            deterministic=deterministic,
            out=out,
        )

    plain, fixed = made(False, "plain"), made(True, "fixed")
    assert not torch.are_deterministic_algorithms_enabled()
    for report, deterministic in ((plain, False), (fixed, True)):
        assert [record.provenance["deterministic"] for record, _ in report.cells] == [deterministic] * 3
    assert [record.key for record, _ in plain.cells] == [record.key for record, _ in fixed.cells]
    again = made(True, "plain")
    assert not any(record.provenance["deterministic"] for record, _ in again.cells), "what is done is not done again"
    for (_, one), (_, other) in zip(plain.cells, fixed.cells, strict=True):
        assert one is not None
        assert other is not None
        assert one.sha256() == other.sha256()
