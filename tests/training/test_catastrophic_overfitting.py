"""Catastrophic overfitting, provoked: one-step training collapses under PGD, and the guard keeps the epoch before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from trainings import history

from robbench.core.threat_model import Threat
from robbench.results.store import Store
from robbench.training.early_stopping import robust_accuracy
from robbench.training.model_loading import load_model
from robbench.training.trainer import train

EPS = 0.15
MEAN, STD = 0.3093, 0.3189  # of the pixels, which come normalized
# Pixels that are ``EPS`` bright give the label away, since a step from black ends there or at black; at clean images
# this has no gradient. The network comes to use it once its weight, zero at first, has grown.
PLUGIN = f"""
from dataclasses import dataclass
import torch
from robbench import Architecture, Backbone, register_architecture
from torch import nn

class Leaking(Backbone):
    def __init__(self):
        super().__init__()
        self.plain = nn.Sequential(nn.Linear(192, 128), nn.ReLU())
        self.leak = nn.Sequential(nn.Linear(192, 128), nn.ReLU())
        self.weight = nn.Parameter(torch.zeros(()))
        self.out_features = 256

    def forward(self, images):
        pixels = nn.functional.avg_pool2d(images * {STD} + {MEAN}, 4).flatten(1)
        bright = torch.relu(1 - (pixels - {EPS}).abs() / {EPS / 2})
        return torch.cat([self.plain(pixels), 0.1 * self.weight * self.leak(bright)], dim=1)

@register_architecture("leaking")
@dataclass(frozen=True)
class LeakingArchitecture(Architecture):
    def build(self, image_shape):
        return Leaking()
"""


def trained_with(folder: Path, guard: float) -> tuple[Any, Store, float]:
    """A model, its store, and its accuracy under PGD."""
    folder.mkdir()
    (folder / "leaking.py").write_text(PLUGIN)
    model = f"architecture = 'leaking'\ndefense = 'fgsm-rs[eps={EPS},rel_step=2.0,alpha=0.5,guard={guard}]'"
    recipe = "epochs = 8, lr = 0.003, optimizer = 'adam', batch_size = 16"
    plan = tiny.make(folder, [model], recipe=recipe, dataset="digits[classes=8|3|9]", plugins=[folder / "leaking.py"])
    (job,) = plan.trained
    store = Store(folder / "store")
    train(job, store, "cpu", "float32")
    validation = job.data.samples("validation")
    return job, store, robust_accuracy(load_model(job, store, "cpu"), validation, Threat("linf", EPS), 1, "cpu")


def test_the_guard_keeps_what_is_lost_without_it(tmp_path: Path) -> None:
    job, store, unguarded = trained_with(tmp_path / "unguarded", 0.95)
    lines = history(job, store)
    assert len(lines) == 8
    best = max(line["validation_robust_accuracy"] for line in lines)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"], "training sees nothing of it"
    assert lines[-1]["validation_accuracy"] > 0.8
    assert unguarded < 0.05
    job, store, guarded = trained_with(tmp_path / "guarded", 0.2)
    info = store.model_info(job.key)
    (note,) = info["notes"]
    assert "catastrophic overfitting: robust accuracy fell from" in note
    assert len(history(job, store)) < 8
    assert info["kept"]["validation_robust_accuracy"] == best
    assert guarded > 0.25
