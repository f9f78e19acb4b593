from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny
import torch
from trainings import Stop, history, left_behind, stopping_at

from robbench.core.global_rng import GlobalState
from robbench.results.store import Store
from robbench.training.trainer import train

NORMED = """
from dataclasses import dataclass
from robbench import Architecture, register_architecture
from robbench.models._backbone import SequentialBackbone
from torch import nn

@register_architecture("normed")
@dataclass(frozen=True)
class Normed(Architecture):
    def build(self, image_shape):
        convolution = nn.Conv2d(image_shape[0], 8, 5, stride=4)
        layers = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten())
        return SequentialBackbone(layers, image_shape)
"""


RESUMED = {
    "cross-entropy": ("", "epochs = 3"),
    "angular": ("objective = 'angular'", "epochs = 3, schedule = 'cosine', optimizer = 'adam'"),
    "fgm": ("defense = 'fgm'", "epochs = 3"),
    "angular fgm": ("objective = 'angular'\ndefense = 'perturbation+fgm'", "epochs = 3, keep = 'best'"),
    "best": ("", "epochs = 3, keep = 'best', optimizer = 'sgd', lr = 0.05, schedule = 'one-cycle'"),
    "resampled": ("balancer = 'augmentation-sampler'", "epochs = 3, optimizer = 'sgd', momentum = 0.9"),
    "batch norm and dropout": ("architecture = 'normed'", "epochs = 3"),
    "nesterov": (
        "",
        "epochs = 3, optimizer = 'sgd', nesterov = true, schedule = 'steps', milestones = [2], warmup = 0.2",
    ),
    "robust": ("", "epochs = 3, keep = 'robust', patience = 9"),
    **{
        method: (f"architecture = 'normed'\ndefense = '{method}'", "epochs = 3")
        for method in (
            "fgsm-rs",
            "n-fgsm",
            "free[replays=2]",
            "pgd-training[steps=2,eps_warmup=0.5]",
            "trades[steps=2,mode=train]",
            "mart[steps=2]",
            "awp[steps=2]",
            "awp[steps=2,on=trades]+averaging[start=0.1]",
            "averaging[kind=swa,start=0.1]",
            "randaugment+cutmix",
            "autoaugment+mixup+averaging",
        )
    },
}


@pytest.mark.parametrize(("model", "recipe"), RESUMED.values(), ids=RESUMED)
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, model: str, recipe: str) -> None:
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    (tmp_path / "normed.py").write_text(NORMED)
    job = tiny.job(tmp_path, model, recipe, plugins=[tmp_path / "normed.py"])
    train(job, whole, "cpu", "float32")
    before = GlobalState.now()
    for epoch in (1, 2):
        with pytest.raises(Stop):
            train(job, parts, "cpu", "float32", stopping_at(epoch))
        assert not parts.has_model(job.key)
    assert GlobalState.now() == before
    begun: list[int] = []
    train(job, parts, "cpu", "float32", lambda done, of: begun.append(done))
    assert begun == [2, 3], "epochs that were done must not be done again"
    assert left_behind(job, parts) == left_behind(job, whole)
    assert len(history(job, parts)) == 3


@pytest.mark.parametrize("objective", ["cross-entropy", "angular"])
def test_an_interruption_after_the_last_epoch_loses_nothing(tmp_path: Path, objective: str) -> None:
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    job = tiny.job(tmp_path, f"objective = '{objective}'", "epochs = 2, keep = 'best'")
    train(job, whole, "cpu", "float32")
    with pytest.raises(Stop):
        train(job, parts, "cpu", "float32", stopping_at(2))
    train(job, parts, "cpu", "float32")
    assert left_behind(job, parts) == left_behind(job, whole)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import tiny
    from robbench.results.store import Store
    from robbench.training.trainer import train

    flush, calls = os.fsync, []

    def killing(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    folder = Path(sys.argv[1])
    job = tiny.job(folder, "defense = 'fgm'", "epochs = 3")
    os.fsync = killing
    train(job, Store(folder / "parts"), "cpu", "float32")
"""


@pytest.mark.end_to_end
def test_a_kill_in_the_middle_of_writing_a_checkpoint_costs_that_epoch_only(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    torch.set_num_threads(1)  # as in the one that was killed
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    job = tiny.job(tmp_path, "defense = 'fgm'", "epochs = 3")
    assert [path.name for path in parts.model_dir(job.key).glob("*.pt")] == ["checkpoint.pt"]
    assert not parts.has_model(job.key)
    begun: list[int] = []
    train(job, parts, "cpu", "float32", lambda done, of: begun.append(done))
    assert begun == [1, 2, 3]
    train(job, whole, "cpu", "float32")
    assert left_behind(job, parts) == left_behind(job, whole)


def test_a_finished_model_has_no_checkpoint(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path), Store(tmp_path)
    seen: list[bool] = []
    train(job, store, "cpu", "float32", lambda *_: seen.append((store.model_dir(job.key) / "checkpoint.pt").is_file()))
    assert seen == [False, True, True]
    files = sorted(path.name for path in store.model_dir(job.key).iterdir())
    assert files == ["history.csv", "model.json", "weights.safetensors"]
