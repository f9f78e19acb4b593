"""Networks that others trained, whose robustness is proved: the files are looked for and not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from proved_networks import make
from third_party_grid import FACTORY, NETWORKS, Network, grid

from robbench.api.attack import attack
from robbench.api.evaluation import evaluate
from robbench.api.report import Report
from robbench.attacks.thorough import Thorough
from robbench.cli.main import main

FILES = Path(os.environ.get("ROBBENCH_TRUTHS") or Path(__file__).resolve().parents[3] / "shared" / "truths")
pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="networks of others are not here: set ROBBENCH_TRUTHS")
SMALL = [network for network in NETWORKS if network.images <= 200]


def evaluated(network: Network, attacks: list[str], limit: int | None = None) -> Report:
    """A network through the public way: arrays and a factory."""
    path = FILES / f"{network.file}.npz"
    with np.load(path, allow_pickle=False) as arrays:
        mean, std = ([*map(float, arrays[name])] if name in arrays else [] for name in ("mean", "std"))
    return evaluate(
        FACTORY,
        path,
        attacks=attacks,
        eps=[network.eps],
        arguments={"path": str(path)},
        mean=mean,
        std=std,
        limit=limit,
    )


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.file)
def test_no_attack_breaks_what_is_proved_robust(network: Network) -> None:
    report = evaluated(network, ["apgd-margin[steps=20]@ref", "strong@ref"])
    left = [report.outcome(label).robust.mean() for label in report.conditions if label != "clean"]
    assert min(left) >= network.low
    assert report.outcome("clean").num_classes == 10
    assert len(report.outcome("clean").ids) == network.images


@pytest.mark.slow
def test_thorough_breaks_half_of_what_hardly_can_be_broken() -> None:
    """A solver breaks all 20, AutoAttack 1 to 4, at as many passes."""
    network = NETWORKS[-1]
    outcome = evaluated(network, ["thorough@ref"]).outcome(f"thorough@{network.eps}")
    assert (~outcome.robust).sum() >= 9
    assert (outcome.forwards + outcome.backwards).max() <= sum(Thorough().passes(10))


@pytest.mark.slow
def test_autoattack_breaks_as_many_as_its_reference() -> None:
    """Of the exactly known network the reference breaks 244 right images, a solver 249."""
    path = FILES / f"{NETWORKS[0].file}.npz"
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    net = make(str(path)).eval()
    floats, classes = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    with torch.no_grad():
        right = net(floats).argmax(dim=1) == classes
        # What a smaller ball breaks, a larger one does.
        wide = attack("apgd-margin", steps=20)(net, floats[right], classes[right], eps=0.12)
        near = right.nonzero()[:, 0][net(wide).argmax(dim=1) != classes[right]].numpy()
    report = evaluate(
        FACTORY,
        (images[near], labels[near]),
        attacks=["autoattack@0.1"],
        eps=["0.1"],
        arguments={"path": str(path)},
        num_classes=10,
    )
    outcome = report.outcome("autoattack@0.1")
    assert outcome.clean.tolist() == outcome.labels.tolist()
    assert 242 <= (~outcome.robust).sum() <= 249


def test_the_grid_of_the_board_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "third-party.toml").write_text(grid(FILES), encoding="utf-8")
    assert main(["plan", "--grid", "third-party.toml"]) == 0
