"""What training asks of defenses around the loss: more steps a batch, after a step, in the end, and when to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.optim.swa_utils import AveragedModel
from trainings import Stop, differs, history, left_behind, stopping_at, trained

from robbench.core.contracts import to_float
from robbench.core.threat_model import Threat
from robbench.results.store import Store
from robbench.training.early_stopping import End, early_end, robust_accuracy
from robbench.training.history import Epoch, kept
from robbench.training.model_loading import load_model
from robbench.training.recipe import Recipe
from robbench.training.trainer import train

PLUGIN = """
from dataclasses import dataclass
import torch
from robbench import Architecture, Defense, Threat, register_architecture, register_defense
from robbench.models._backbone import SequentialBackbone
from torch import nn

@register_architecture("normed")
@dataclass(frozen=True)
class Normed(Architecture):
    def build(self, image_shape):
        layers = nn.Sequential(
            nn.Conv2d(image_shape[0], 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
        )
        return SequentialBackbone(layers, image_shape)

@register_defense("diary")
@dataclass(frozen=True)
class Diary(Defense):
    # Writes down what it is told, in its state, and adds up what it may keep.
    steps: int = 1
    keep: bool = False
    until: int = 0

    def steps_per_batch(self):
        return self.steps

    def training_loss(self, batch):
        seen = torch.tensor([[batch.progress, float(batch.ends_epoch), batch.eps]], dtype=torch.float64)
        batch.state["told"] = torch.cat([batch.state.get("told", seen[:0]), seen])
        return batch.loss(batch.images)

    def after_step(self, batch):
        weights = torch.cat([value.detach().flatten() for value in batch.model.parameters()])
        batch.state["walk"] = batch.state.get("walk", torch.zeros(())) + weights.abs().sum()
        DIARIES[:] = [batch.state]

    def final_weights(self, model, state):
        return {name: 2 * value if "head" in name else value for name, value in model.state_dict().items()} \\
            if self.keep else None

    def watched(self, eps):
        return Threat("linf", eps) if self.until else None

    def stop(self, robust_accuracies):
        return "the diary is full" if self.until and len(robust_accuracies) == self.until else None

DIARIES = []
"""


def own(folder: Path, model: str, recipe: str = "epochs = 3") -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(PLUGIN)
    return tiny.job(folder, model, recipe, plugins=[folder / "own.py"])


def diary(job: Any) -> dict[str, torch.Tensor]:
    import sys

    module = sys.modules[type(job.defenses[0].component).__module__]
    state: dict[str, torch.Tensor] = module.DIARIES[0]
    return state


@pytest.mark.parametrize("steps", [1, 3])
def test_defenses_are_told_where_training_stands(tmp_path: Path, steps: int) -> None:
    job = own(tmp_path, f"defense = 'diary[steps={steps}]'", "epochs = 2, batch_size = 32, schedule = 'cosine'")
    store = Store(tmp_path / "store")
    train(job, store, "cpu", "float32")
    images = len(job.data.splits.train)
    per_epoch = -(-images // 32) * steps
    told = diary(job)["told"]
    assert torch.allclose(told[:, 0], torch.arange(2 * per_epoch).double() / (2 * per_epoch))
    assert told[:, 1].nonzero().flatten().tolist() == [per_epoch - 1, 2 * per_epoch - 1]
    assert set(told[:, 2].tolist()) == {job.data.choice.component.eps["linf"].reference}
    info = store.model_info(job.key)
    assert info["steps"] == 2 * per_epoch
    assert [line["passes"] for line in history(job, store)] == [steps * images] * 2


def test_least_steps_count_those_on_the_same_batch(tmp_path: Path) -> None:
    job = own(tmp_path, "defense = 'diary[steps=4]'", "epochs = 1, min_steps = 20, batch_size = 32")
    store = Store(tmp_path / "store")
    train(job, store, "cpu", "float32")
    assert store.model_info(job.key)["epochs"] == -(-20 // (4 * -(-len(job.data.splits.train) // 32)))


def test_the_weights_that_are_handed_over_are_judged_and_kept_and_training_goes_on_from_its_own(
    tmp_path: Path,
) -> None:
    plain = trained(own(tmp_path, "defense = 'diary'"), Store(tmp_path / "a"))
    job, store = own(tmp_path, "defense = 'diary[keep=true]'"), Store(tmp_path / "b")
    found = trained(job, store)
    assert differs(plain, found) == ["head.bias", "head.weight"]
    assert torch.equal(found["head.weight"], 2 * plain["head.weight"])
    validation = job.data.samples("validation")
    right = load_model(job, store, "cpu").predict(to_float(validation.images)) == validation.labels
    assert history(job, store)[-1]["validation_accuracy"] == pytest.approx(float(right.double().mean()))


# --- when training stops


def test_a_defense_that_stops_keeps_the_most_robust_epoch_and_its_reason(tmp_path: Path) -> None:
    job, store = own(tmp_path, "defense = 'diary[until=2]'", "epochs = 4"), Store(tmp_path / "a")
    found = trained(job, store)
    lines = history(job, store)
    assert len(lines) == 2
    robust = [line["validation_robust_accuracy"] for line in lines]
    best = robust.index(max(robust)) + 1
    info = store.model_info(job.key)
    assert info["notes"] == [f"training ended after epoch 2 of 4: the diary is full; kept: epoch {best}"]
    assert (info["epochs"], info["kept"]["epoch"]) == (2, best)
    alone = trained(own(tmp_path, "defense = 'diary[until=9]'", f"epochs = {best}"), Store(tmp_path / "b"))
    assert not differs(found, alone)
    watched = robust_accuracy(
        load_model(job, store, "cpu"),
        job.data.samples("validation"),
        Threat("linf", job.data.choice.component.eps["linf"].reference),
        job.seed,
        "cpu",
    )
    assert max(robust) == pytest.approx(watched)


def test_an_end_is_not_forgotten_by_an_interruption(tmp_path: Path) -> None:
    job = own(tmp_path, "defense = 'diary[until=2]'", "epochs = 4")
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    train(job, whole, "cpu", "float32")
    for reached in (1, 4):
        with pytest.raises(Stop):
            train(job, parts, "cpu", "float32", stopping_at(reached))
    train(job, parts, "cpu", "float32")
    assert left_behind(job, parts) == left_behind(job, whole)
    assert parts.model_info(job.key)["notes"] == whole.model_info(job.key)["notes"]


def lines_of(balanced: list[float], robust: list[float | None]) -> list[Epoch]:
    pairs = enumerate(zip(balanced, robust, strict=True), 1)
    return [Epoch(at, 0.1, 1, 1.0, 1.0, 1.0, value, value, other) for at, (value, other) in pairs]


def test_patience_counts_epochs_since_the_best_by_what_is_kept() -> None:
    history = lines_of([0.5, 0.9, 0.8, 0.8], [0.1, 0.2, 0.4, 0.4])
    assert early_end(history, [], Recipe(keep="best", patience=3)) is None
    assert early_end(history, [], Recipe(keep="best", patience=2)) == End("no epoch since 2 is better", "best")
    assert early_end(history, [], Recipe(keep="robust", patience=2)) is None
    assert early_end(history, [], Recipe(keep="robust", patience=1)) == End("no epoch since 3 is better", "robust")
    assert early_end(history, [], Recipe(keep="last")) is None
    assert early_end([], [], Recipe(keep="best", patience=1)) is None
    assert [kept(history, keep).epoch for keep in ("last", "best", "robust")] == [4, 2, 3]


def test_the_most_robust_epoch_is_kept_and_patience_ends_training(tmp_path: Path) -> None:
    recipe = "epochs = 9, keep = 'robust', optimizer = 'sgd', lr = 0.3, momentum = 0.0"
    job, store = tiny.job(tmp_path, recipe=f"{recipe}, patience = 2"), Store(tmp_path)
    found = trained(job, store)
    lines = history(job, store)
    robust = [line["validation_robust_accuracy"] for line in lines]
    best = robust.index(max(robust)) + 1
    assert len(lines) == min(9, best + 2)
    assert not differs(found, trained(tiny.job(tmp_path, recipe=recipe.replace("9", str(best))), store))
    assert store.model_info(job.key)["kept"]["validation_robust_accuracy"] == max(robust)


def test_robust_accuracy_is_empty_where_nothing_depends_on_it(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path, recipe="epochs = 1"), Store(tmp_path)
    train(job, store, "cpu", "float32")
    header, line = (store.model_dir(job.key) / "history.csv").read_text().splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["validation_robust_accuracy"] == ""


# --- averages and costs in a whole training


def test_the_kept_average_is_torchs(tmp_path: Path) -> None:
    epochs = 4
    job = own(tmp_path, "architecture = 'normed'\ndefense = 'averaging[kind=swa,start=0.3]'", f"epochs = {epochs}")
    found = trained(job, Store(tmp_path / "a"))
    snapshots = []
    for epoch in (2, 3, 4):
        short = own(tmp_path, "architecture = 'normed'", f"epochs = {epoch}")
        snapshots.append(load_model_of(short, Store(tmp_path / str(epoch))))
    averaged = AveragedModel(snapshots[0], use_buffers=True)
    for snapshot in snapshots:
        averaged.update_parameters(snapshot)
    expected = averaged.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.is_floating_point():  # numbers of batches are counted, not averaged
            torch.testing.assert_close(value, expected[name])


def load_model_of(job: Any, store: Store) -> Any:
    train(job, store, "cpu", "float32")
    return load_model(job, store, "cpu")


COSTS = {
    "none": (1, 0),
    "fgsm-rs": (2, 0),
    "n-fgsm": (2, 0),
    "pgd-training[steps=3]": (4, 0),
    "pgd-training[steps=3,alpha=0.5]": (5, 0),
    "free[replays=3]": (3, 0),
    "trades[steps=3]": (5, 1),
    "mart[steps=3]": (5, 0),
    "awp[steps=3]": (5, 0),
    "awp[steps=3,on=trades]": (7, 1),
    "averaging": (1, 0),
    "randaugment+cutmix": (1, 0),
}


@pytest.mark.parametrize("defense", COSTS)
def test_what_a_method_costs_is_counted(tmp_path: Path, defense: str) -> None:
    job, store = own(tmp_path, f"architecture = 'normed'\ndefense = '{defense}'", "epochs = 1"), Store(tmp_path)
    train(job, store, "cpu", "float32")
    images, (both, forward) = len(job.data.splits.train), COSTS[defense]
    (line,) = history(job, store)
    assert (line["passes"], line["forward_only"]) == (both * images, forward * images)
    costs = store.model_info(job.key)["costs"]
    assert costs == {"forwards": (both + forward) * images, "backwards": both * images}


@pytest.mark.parametrize("balancer", ["class-weights", "oversampling", "augmentation-sampler"])
@pytest.mark.parametrize("defense", ["trades[steps=2]", "mart[steps=2]", "cutmix+awp[steps=2]"])
def test_methods_go_with_balancers(tmp_path: Path, defense: str, balancer: str) -> None:
    job = own(tmp_path, f"architecture = 'normed'\nbalancer = '{balancer}'\ndefense = '{defense}'", "epochs = 1")
    assert all(bool(value.isfinite().all()) for value in trained(job, Store(tmp_path)).values())
