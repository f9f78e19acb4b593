"""Training towards certificates: its bounds by formula, its schedules, and what it makes of a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from certified import Plain, tiny_relu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from training_steps import Normed, step
from trainings import Stop, history, left_behind, stopping_at, trained

from robbench.certificates._bounds import proved
from robbench.core.contracts import Classifier, to_float
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat
from robbench.core.training_step import Batch
from robbench.defenses._bound_training import BoundTraining
from robbench.defenses.crown_ibp_training import CrownIntervalBoundTraining
from robbench.defenses.ibp_training import IntervalBoundTraining
from robbench.results.store import Store
from robbench.training.network import build
from robbench.training.trainer import train

EVERY: list[type[BoundTraining]] = [IntervalBoundTraining, CrownIntervalBoundTraining]
EPS = 0.1
LABELS = torch.tensor([0, 1, 2, 1])


def images(*shape: int) -> Tensor:
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def hidden(seed: int = 0) -> Classifier:
    return tiny_relu(seed, inputs=6, hidden=5).requires_grad_(True).train()


def late(model: Classifier, x: Tensor, **rest: Any) -> Batch:
    """A step at the end of training, where eps is at its largest."""
    return step(model, x, LABELS, eps=EPS, progress=0.999, **rest)


def box(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    lower, upper = (x - eps).clamp(min=0).flatten(1), (x + eps).clamp(max=1).flatten(1)
    return (lower + upper) / 2, (upper - lower) / 2


# --- closed forms


@pytest.mark.parametrize("kind", EVERY)
def test_the_loss_of_a_linear_model_is_that_of_its_worst_scores(kind: type[BoundTraining]) -> None:
    """All images of the box, some of whose sides [0, 1] cuts off, by one formula per margin."""
    weight = torch.randn(3, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = images(3, 4, 4)
    assert (x < EPS).any()
    head = nn.Linear(48, 3, bias=False, dtype=torch.float64)
    head.weight = nn.Parameter(weight)
    batch = late(Plain(nn.Sequential(nn.Flatten(), head), 3), x)
    center, radius = box(x)
    slopes = weight[LABELS][:, None] - weight
    worst = -((slopes @ center[..., None]) - slopes.abs() @ radius[..., None]).squeeze(2)
    clean = functional.cross_entropy(x.flatten(1) @ weight.T, LABELS)
    for kappa in (0.0, 0.3):
        wanted = kappa * clean + (1 - kappa) * functional.cross_entropy(worst, LABELS)
        torch.testing.assert_close(kind(kappa=kappa).training_loss(batch), wanted)


def test_the_loss_behind_a_hidden_layer_is_that_of_its_interval() -> None:
    model, x = hidden(), images(1, 1, 6)
    _, first, _, last = model.network  # type: ignore[misc]
    center, radius = box(x)
    middle, around = center @ first.weight.T + first.bias, radius @ first.weight.abs().T
    lower, upper = (middle - around).relu(), (middle + around).relu()
    slopes = last.weight[LABELS][:, None] - last.weight
    least = slopes.clamp(min=0) @ lower[..., None] + slopes.clamp(max=0) @ upper[..., None]
    margins = least.squeeze(2) + last.bias[LABELS][:, None] - last.bias
    wanted = functional.cross_entropy(-margins, LABELS)
    torch.testing.assert_close(IntervalBoundTraining(kappa=0).training_loss(late(model, x)), wanted)


@pytest.mark.parametrize("kind", EVERY)
def test_without_eps_the_bound_is_the_loss(kind: type[BoundTraining]) -> None:
    for model, x in ((hidden(), images(1, 1, 6)), (Normed(), images(3, 4, 4))):
        batch = late(model, x)
        found = kind(kappa=0).training_loss(replace(batch, eps=0.0))
        torch.testing.assert_close(found, batch.score_loss(batch.scores(x)))


@pytest.mark.parametrize("kind", EVERY)
def test_class_weights_weigh_both_terms(kind: type[BoundTraining]) -> None:
    """With weight on one class alone, the other images do not matter."""
    x, only = images(1, 1, 6), torch.tensor([0.0, 1.0, 0.0])
    found = kind().training_loss(late(hidden(), x, class_weights=only))
    other = torch.where((LABELS == 1)[:, None, None, None], x, 1 - x)
    torch.testing.assert_close(kind().training_loss(late(hidden(), other, class_weights=only)), found)


# --- schedules


def test_eps_grows_after_a_clean_start_and_the_clean_share_falls() -> None:
    defense = IntervalBoundTraining(clean=0.2, ramp=0.4, kappa=0.25)
    assert [defense.grown(at) for at in (0.0, 0.19, 0.2, 0.4, 0.6, 0.99)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    model, x = hidden(), images(1, 1, 6)
    batch = step(model, x, LABELS, eps=EPS)
    clean = batch.score_loss(model(x))
    torch.testing.assert_close(defense.training_loss(replace(batch, progress=0.1)), clean)
    whole = replace(defense, kappa=0.0, clean=0.0, ramp=0.0)
    bound = whole.training_loss(replace(batch, eps=EPS / 2))
    half = defense.training_loss(replace(batch, progress=0.4))
    torch.testing.assert_close(half, 0.625 * clean + 0.375 * bound)
    assert whole.grown(0.0) == 1


def test_linear_bounds_give_way_to_intervals() -> None:
    defense, batch = CrownIntervalBoundTraining(clean=0.0, ramp=0.5), late(hidden(), images(1, 1, 6))
    assert defense.linear_share(replace(batch, progress=0.125)) == 0.75
    early, end = replace(batch, progress=0.25), IntervalBoundTraining(clean=0.0, ramp=0.5)
    assert (defense.margins(early) >= end.margins(early)).all()
    assert (defense.margins(early) > end.margins(early)).any()
    torch.testing.assert_close(defense.margins(batch), end.margins(batch), rtol=0, atol=0)


# --- what holds for any network


@given(seed=st.integers(0, 10**6), eps=st.floats(0.001, 0.5), layers=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_linear_bounds_are_no_looser_and_cut_no_point_off(seed: int, eps: float, layers: int) -> None:
    model, x = tiny_relu(seed, inputs=4, hidden=5, layers=layers), images(1, 1, 4)
    # At their largest share, and at the largest eps.
    linear = CrownIntervalBoundTraining()
    object.__setattr__(linear, "linear_share", lambda batch: 1.0)
    batch = replace(late(model, x), eps=eps)
    found, intervals = linear.margins(batch), IntervalBoundTraining().margins(batch)
    assert (found >= intervals - 1e-12).all()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        change = (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1).mul(4).clamp(-1, 1)
        scores = model((x + eps * change).clamp(0, 1))
        assert (scores.gather(1, LABELS[:, None]) - scores >= found - 1e-9).all()


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("progress", [0.2, 0.999])
def test_gradients_reach_all_weights_and_statistics_move_once(kind: type[BoundTraining], progress: float) -> None:
    model = Normed()
    kind(kappa=0).training_loss(step(model, images(3, 4, 4), LABELS, eps=EPS, progress=progress)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    assert int(model.body[1].num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", EVERY)
def test_low_precision_is_for_the_clean_pass_alone(kind: type[BoundTraining]) -> None:
    model, x = hidden().float(), images(1, 1, 6).float()
    batch = step(model, x, LABELS, eps=EPS, progress=0.3)
    torch.testing.assert_close(kind().margins(replace(batch, precision="bfloat16")), kind().margins(batch))


# --- planning


SIGMOID = """
from dataclasses import dataclass
from robbench import Architecture, register_architecture
from robbench.models._backbone import SequentialBackbone
from torch import nn

@register_architecture("sigmoid")
@dataclass(frozen=True)
class Sigmoid(Architecture):
    def build(self, image_shape):
        return SequentialBackbone(nn.Sequential(nn.Flatten(), nn.Sigmoid()), image_shape)
"""


@pytest.mark.parametrize("name", ["ibp-training", "crown-ibp-training"])
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "sigmoid.py").write_text(SIGMOID)
    for model, message in (
        (f"architecture = 'sigmoid'\ndefense = '{name}'", f'"{name}" cannot train "sigmoid": .*Sigmoid.* bounded'),
        (f"objective = 'angular'\ndefense = '{name}'", f'"{name}" is a loss on scores'),
        (f"defense = 'mixup+{name}'", f'"mixup" mixes labels, which "{name}" cannot take'),
        (f"defense = '{name}+fgm'", f'"{name}" sees no loss after it'),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            tiny.job(tmp_path, model, plugins=[tmp_path / "sigmoid.py"])
        assert "\n" not in str(caught.value)
    tiny.job(tmp_path, f"architecture = 'small-cnn'\ndefense = '{name}'")


# --- training


def certified(folder: Path, defense: str) -> float:
    store = Store(folder)
    job = tiny.job(folder, f"architecture = 'cnn-a'\ndefense = '{defense}'", "epochs = 12, lr = 0.003")
    job_weights = trained(job, store)
    model = build(job, torch.arange(3), torch.zeros(3), torch.ones(3))
    model.load_state_dict(job_weights)
    model.eval().requires_grad_(False)
    samples = job.data.samples("validation")
    x = to_float(samples.images)
    predicted = model(x).argmax(dim=1)
    radius = proved(model, x, predicted, Threat("linf", 0.05), linear=False).radius
    return float(((radius > 0) & (predicted == samples.labels)).double().mean())


def test_training_towards_bounds_certifies_what_standard_training_does_not(tmp_path: Path) -> None:
    plain = certified(tmp_path / "plain", "none")
    assert certified(tmp_path / "ibp", "ibp-training[eps=0.05]") > plain + 0.3
    assert certified(tmp_path / "crown", "crown-ibp-training[eps=0.05]") > plain + 0.3


@pytest.mark.parametrize("name", ["ibp-training", "crown-ibp-training"])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    job = tiny.job(tmp_path, f"architecture = 'cnn-a'\ndefense = '{name}[ramp=0.6]'", "epochs = 3")
    train(job, whole, "cpu", "float32")
    for epoch in (1, 2):
        with pytest.raises(Stop):
            train(job, parts, "cpu", "float32", stopping_at(epoch))
    train(job, parts, "cpu", "float32")
    assert left_behind(job, parts) == left_behind(job, whole)


def test_bounds_count_as_two_more_passes(tmp_path: Path) -> None:
    for name, linear in (("ibp-training", 0), ("crown-ibp-training", 3)):
        store = Store(tmp_path / name)
        job = tiny.job(tmp_path, f"architecture = 'cnn-a'\ndefense = '{name}[clean=0.0, ramp=1.0]'", "epochs = 2")
        train(job, store, "cpu", "float32")
        count = len(job.data.splits.train)
        last = history(job, store)[-1]
        assert last["passes"] == (3 + linear) * count
        assert last["forward_only"] == count
