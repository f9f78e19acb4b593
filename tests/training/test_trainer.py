from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainings import differs, history, trained

from robbench.core.contracts import to_float
from robbench.core.global_rng import GlobalState
from robbench.execution.jobs import Progress, carry_out
from robbench.results.store import Store
from robbench.training.judging import predictions
from robbench.training.model_loading import load_model
from robbench.training.network import NormalizedBackbone, build, pixel_statistics
from robbench.training.optimizer import make_optimizer, make_scheduler
from robbench.training.recipe import Recipe
from robbench.training.trainer import Diverged, train

# --- what is repeatable


def test_the_same_seed_gives_the_same_weights_whatever_the_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = trained(tiny.job(tmp_path / "a"), Store(tmp_path / "a"))
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert not differs(first, trained(tiny.job(tmp_path / "b"), Store(tmp_path / "b")))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_step_in_one_pass_over_memory_where_that_changes_the_right_weights(
    name: str, tmp_path: Path
) -> None:
    job = tiny.job(tmp_path, recipe=f"optimizer = '{name}', lr = 0.5, epochs = 1")
    values, gradient = torch.arange(12.0).reshape(3, 4), torch.rand(3, 2)
    stepped = []
    for sliced in (False, True):
        model = nn.Module()
        model.own = nn.Parameter(values[:, ::2].clone() if not sliced else values.clone()[:, ::2])
        model.other = nn.Parameter(torch.rand(2, 3, 3, 3).contiguous(memory_format=torch.channels_last))
        optimizer = make_optimizer(model, job.recipe)
        assert optimizer.defaults["fused"] is not sliced
        model.own.grad = gradient
        optimizer.step()
        stepped.append(model.own.detach())
    torch.testing.assert_close(*stepped)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    changed = differs(trained(tiny.job(tmp_path, seed=0), store), trained(tiny.job(tmp_path, seed=1), store))
    assert set(changed) >= {"head.weight", "backbone.network.layers.0.weight"}
    assert "backbone.mean" not in changed


@pytest.mark.parametrize(
    "model", ["", "balancer = 'augmentation'\ndefense = 'perturbation+fgm'\nobjective = 'angular'"]
)
def test_training_leaves_the_global_random_state_alone(tmp_path: Path, model: str) -> None:
    before = GlobalState.now()
    train(tiny.job(tmp_path, model), Store(tmp_path), "cpu", "float32")
    assert GlobalState.now() == before


# --- what is learned


def test_one_step_is_gradient_descent_on_the_weighted_loss(tmp_path: Path) -> None:
    job = tiny.job(tmp_path, "balancer = 'class-weights'", "epochs = 1, optimizer = 'sgd', lr = 0.05, batch_size = 500")
    data, splits = job.data, job.data.splits
    samples = splits.take(data.decoded, splits.train)
    model = build(job, samples.labels[:0], *pixel_statistics(samples.images))
    counts = samples.counts(3).double()
    own = (counts.sum() / counts)[samples.labels]
    losses = nn.functional.cross_entropy(model(to_float(samples.images)), samples.labels, reduction="none")
    loss = (own * losses).sum() / own.sum()
    loss.backward()
    expected = {name: p.detach() - 0.05 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    after = trained(job, Store(tmp_path))
    assert expected.keys() == {name for name, _ in model.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
    assert history(job, Store(tmp_path))[0]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path, recipe="epochs = 8"), Store(tmp_path)
    train(job, store, "cpu", "float32")
    assert history(job, store)[-1]["validation_accuracy"] > 0.8


def test_history_says_what_happened(tmp_path: Path) -> None:
    job = tiny.job(tmp_path, "defense = 'fgm'", "epochs = 3, schedule = 'cosine', lr = 0.004")
    store = Store(tmp_path)
    train(job, store, "cpu", "float32")
    lines = history(job, store)
    images = len(job.data.splits.train)
    assert list(lines[0]) == [
        "epoch",
        "lr",
        "passes",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "validation_balanced_accuracy",
        "validation_robust_accuracy",
        "forward_only",
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == pytest.approx([0.004, 0.003, 0.001])
    # One pass to find the step, one over the images as they are, one over the attacked ones.
    assert [line["passes"] for line in lines] == [3 * images] * 3
    assert store.model_info(job.key)["costs"] == {"forwards": 9 * images, "backwards": 9 * images}


def test_the_last_line_of_the_history_is_about_the_kept_weights(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path, "objective = 'angular'"), Store(tmp_path)
    train(job, store, "cpu", "float32")
    last = history(job, store)[-1]
    splits = job.data.splits
    validation = splits.take(job.data.decoded, splits.validation)
    decided = predictions(load_model(job, store, "cpu"), validation, "cpu")
    right = (decided == validation.labels).double()
    assert last["validation_accuracy"] == pytest.approx(float(right.mean()))
    recalls = [float(right[validation.labels == c].mean()) for c in range(3)]
    assert last["validation_balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_best_keeps_the_first_epoch_of_the_highest_balanced_validation_accuracy(tmp_path: Path) -> None:
    steps = "epochs = {}, optimizer = 'sgd', lr = 0.3, momentum = 0.0"
    store = Store(tmp_path)
    best = tiny.job(tmp_path, recipe=steps.format(6) + ", keep = 'best'")
    kept = trained(best, store)
    scores = [line["validation_balanced_accuracy"] for line in history(best, store)]
    at = scores.index(max(scores))
    assert at < 5, "the recipe must be one whose last epoch is not the best"
    same = trained(tiny.job(tmp_path, recipe=steps.format(at + 1)), store)
    assert not differs(kept, same)


def test_pixel_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = pixel_statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean.numpy(), pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), pixels.std(axis=(0, 2, 3)), rtol=1e-6)


def test_pixel_statistics_of_an_empty_channel_can_be_divided_by() -> None:
    mean, std = pixel_statistics(torch.zeros(5, 3, 4, 4, dtype=torch.uint8))
    assert bool((mean == 0).all())
    assert bool((std > 0).all())


def test_the_model_normalizes_by_itself(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path), Store(tmp_path)
    train(job, store, "cpu", "float32")
    model = load_model(job, store, "cpu")
    samples = job.data.splits.take(job.data.decoded, job.data.splits.train)
    inner = model.backbone
    assert isinstance(inner, NormalizedBackbone)
    pixels = samples.images.numpy() / 255
    mean, std = pixels.mean(axis=(0, 2, 3), keepdims=True), pixels.std(axis=(0, 2, 3), keepdims=True)
    normalized = torch.from_numpy((pixels - mean) / std).float()
    with torch.no_grad():
        expected = model.head(inner.network(normalized))  # type: ignore[operator]
        torch.testing.assert_close(model(to_float(samples.images)), expected, rtol=1e-4, atol=1e-4)


# --- recipes


def rates(recipe: Recipe, per_epoch: int, resumed: int = 0) -> list[float]:
    """The learning rates of all steps, with an optimizer that is saved and loaded before an epoch."""
    found: list[float] = []
    optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe)
    for epoch in range(recipe.epochs):
        if epoch == resumed:
            state = optimizer.state_dict()
            optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe)
            optimizer.load_state_dict(state)
        scheduler = make_scheduler(optimizer, recipe, per_epoch, recipe.epochs, epoch)
        for _ in range(per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 12), st.floats(1e-6, 10), st.sampled_from(["sgd", "adam", "adamw"]))
def test_schedules_follow_their_formulas(epochs: int, per_epoch: int, lr: float, optimizer: Any) -> None:
    recipe = Recipe(epochs=epochs, lr=lr, optimizer=optimizer)
    total = epochs * per_epoch
    steps = np.arange(total)
    formulas: dict[Any, np.ndarray] = {
        "constant": np.full(total, lr),
        "cosine": lr * np.cos(np.pi * steps / total / 2) ** 2,
        "one-cycle": lr * np.interp(steps, [0, 0.3 * total - 1, total - 1], [1 / 25, 1, 1 / 250_000])
        if total > 3
        else lr * np.interp(steps, [0.3 * total - 1, total - 1], [1, 1 / 250_000]),
    }
    for schedule, expected in formulas.items():
        found = rates(replace(recipe, schedule=schedule), per_epoch)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=lr * 1e-12)
        assert min(found) > 0, "a step at rate 0 would be no step"
        assert rates(replace(recipe, schedule=schedule), per_epoch, resumed=epochs // 2) == found


def test_milestones_are_torchs_and_warmup_is_torchs() -> None:
    recipe = Recipe(epochs=6, lr=0.3, optimizer="sgd", schedule="steps", milestones=(2, 5), gamma=0.2, warmup=0.25)
    per_epoch = 4
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.3)
    total = recipe.epochs * per_epoch
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=4 / total, total_iters=total // 4 - 1)
    milestones = [milestone * per_epoch for milestone in recipe.milestones]
    both = torch.optim.lr_scheduler.ChainedScheduler(
        [warm, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)]
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    assert rates(recipe, per_epoch) == pytest.approx(expected)
    assert rates(recipe, per_epoch, resumed=3) == rates(recipe, per_epoch)


def test_nesterov_momentum_is_torchs() -> None:
    theirs, ours = nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.arange(4.0))
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=True)
    for weight, optimizer in (
        (theirs, torch.optim.SGD([theirs], 0.1, momentum=0.8, weight_decay=0.01, nesterov=True)),
        (ours, make_optimizer(weights_of([ours]), recipe)),
    ):
        for k in range(3):
            weight.grad = torch.arange(4.0) + k
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def weights_of(weights: list[nn.Parameter]) -> nn.Module:
    model = nn.Module()
    model.weights = nn.ParameterList(weights)
    return model


def test_keys_of_one_cycle_changed_with_its_rates_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        recipes = (f"epochs = 2, schedule = '{schedule}'" for schedule in ("constant", "cosine", "one-cycle"))
        return [tiny.job(tmp_path, recipe=recipe).key for recipe in recipes]

    now = keys()
    monkeypatch.setattr("robbench.planning.plan._VERSIONS", {})
    assert [key == before for key, before in zip(now, keys(), strict=True)] == [True, True, False]


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 10_000), st.integers(1, 400))
def test_epochs_are_the_fewest_that_make_enough_steps(epochs: int, least: int, per_epoch: int) -> None:
    count = Recipe(epochs=epochs, min_steps=least).epochs_for(per_epoch)
    assert count >= epochs
    assert count * per_epoch >= least
    assert count == epochs or (count - 1) * per_epoch < least


def test_more_epochs_are_run_where_there_would_be_too_few_steps(tmp_path: Path) -> None:
    job, store = tiny.job(tmp_path, recipe="epochs = 1, batch_size = 32, min_steps = 8"), Store(tmp_path)
    train(job, store, "cpu", "float32")
    per_epoch = math.ceil(len(job.data.splits.train) / 32)
    info = store.model_info(job.key)
    assert info["epochs"] == len(history(job, store)) == math.ceil(8 / per_epoch) > 1
    assert info["steps"] == per_epoch * info["epochs"]


# --- what goes wrong


@pytest.mark.parametrize(
    "recipe", ["epochs = 3, optimizer = 'sgd', lr = 1e30", "epochs = 1, optimizer = 'sgd', lr = 1e38"]
)
def test_a_loss_that_is_no_number_leaves_nothing_to_score(tmp_path: Path, recipe: str) -> None:
    plan = tiny.make(tmp_path, recipe=recipe, conditions=["clean", "fgsm@ref"])
    (job,) = plan.trained
    store = Store(plan.request.out)
    with pytest.raises(Diverged, match="diverged: loss in epoch 1"):
        train(job, store, "cpu", "float32")
    assert not store.has_model(job.key)
    (line,) = history(job, store)
    assert not (math.isfinite(line["train_loss"]) and math.isfinite(line["validation_loss"]))
    finished: list[Progress] = []
    carry_out(plan, job, job.cells, finished.append)
    for cell in job.cells:
        record = store.record(cell.key)
        assert record is not None
        assert record.status == "unsupported"
        assert "its training diverged" in str(record.reason)
        assert not record.metrics
        assert store.outcome(record) is None
        assert store.finished(cell.key), "training is deterministic: it would diverge again"
    assert [progress.finished.status for progress in finished if progress.finished] == ["unsupported"] * 2


@pytest.mark.parametrize("objective", ["cross-entropy", "angular"])
def test_weights_that_the_last_step_spoiled_are_not_scored(tmp_path: Path, objective: str) -> None:
    model = f"objective = '{objective}'"
    plan = tiny.make(tmp_path, [model], recipe="epochs = 1, optimizer = 'sgd', lr = 1e38, batch_size = 500")
    (job,) = plan.jobs
    store = Store(plan.request.out)
    carry_out(plan, job, job.cells, lambda progress: None)
    record = store.record(job.cells[0].key)
    assert record is not None
    assert record.status == "unsupported"
    assert "its training diverged" in str(record.reason)
    assert not store.has_model(job.key)
