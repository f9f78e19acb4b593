"""What evaluations take of memory, with all of their processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robbench.api.loading import load

MOST = 4 * 2**30
NET = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))

def signs():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 43))
"""


def bytes_of_tree(root: int) -> int:
    """Resident bytes of a process and all below it; pages that several share are counted for each."""
    below: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            below[int(entry.read_text().rpartition(")")[2].split()[1])].append(int(entry.parent.name))
        except OSError:
            continue
    found, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting += below[pid]
        try:
            found += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return found


def peak(folder: Path, model: str, images: NDArray[Any], labels: NDArray[Any]) -> int:
    """Evaluate a model from the shell, on 32 images, and measure."""
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "net.py").write_text(NET, encoding="utf-8")
    asked = ("--dataset", "images.npz", "--attack", "fgsm@2/255", "--limit", "32", "--device", "cpu")
    command = [sys.executable, "-m", "robbench", "evaluate", model, *asked]
    most = 0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            most = max(most, bytes_of_tree(running.pid))
            time.sleep(0.05)
    assert running.returncode == 0
    report = load(folder / "runs")
    assert len(report.outcome("fgsm@2/255").ids) == 32
    return most


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory of other processes is read from /proc")


@pytest.mark.parametrize(("model", "shape", "classes"), [("mlp", (1, 28, 28), 10), ("signs", (3, 32, 32), 43)])
@pytest.mark.end_to_end
def test_small_networks_fit_into_4_gib(tmp_path: Path, model: str, shape: tuple[int, ...], classes: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((4 * classes, *shape), dtype=np.float32)
    assert peak(tmp_path, f"net.py:{model}", images, np.arange(4 * classes) % classes) < MOST


@pytest.mark.slow
def test_a_resnet_of_1000_classes_on_large_images_fits_into_4_gib(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 224, 224), dtype=np.uint8)
    assert peak(tmp_path, "torchvision:resnet18", images, rng.integers(0, 1000, 64)) < MOST
