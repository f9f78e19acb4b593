"""Weight averaging against its recurrences, and augmentation inside the training step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import images_near, numbers, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from training_steps import Normed, Seen, recording, step, trainable

from robbench.core.global_rng import GlobalState
from robbench.core.training_step import Batch
from robbench.defenses.autoaugment import AutoAugmentTraining
from robbench.defenses.averaging import Averaging
from robbench.defenses.cutmix import CutMixTraining
from robbench.defenses.mixup import MixUpTraining
from robbench.defenses.randaugment import RandAugmentTraining

LABELS = torch.arange(6) % 3


def walk(defense: Averaging, steps: int, per_epoch: int) -> tuple[list[dict[str, Tensor]], Any]:
    """The states of a network that moves at random, and what is handed over in the end."""
    model, seen = Normed(), []
    kept: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for t in range(steps):
        with torch.no_grad():
            for value in model.state_dict().values():
                value += torch.randint(-5, 6, value.shape, generator=generator)
        batch = step(
            model,
            images_near(0.5, 0.4, 6),
            LABELS,
            progress=t / steps,
            ends_epoch=(t + 1) % per_epoch == 0,
            state=kept,
        )
        defense.after_step(batch)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return seen, defense.final_weights(model, kept)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.floats(0.05, 0.95), st.floats(0, 0.95))
def test_the_exponential_average_is_its_recurrence(steps: int, decay: float, start: float) -> None:
    seen, found = walk(Averaging(decay=decay, start=start), steps, per_epoch=3)
    taken = [state for t, state in enumerate(seen) if t / steps >= start]
    if not taken:
        assert found is None
        return
    for name, value in found.items():
        expected = taken[0][name]
        for t, state in enumerate(taken):
            d = min(decay, t / (t + 9))
            expected = d * expected + (1 - d) * state[name] if value.is_floating_point() else state[name]
        torch.testing.assert_close(value, expected)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 3), st.floats(0, 0.95))
def test_the_stochastic_average_is_the_mean_of_the_ends_of_epochs(epochs: int, per_epoch: int, start: float) -> None:
    steps = epochs * per_epoch
    seen, found = walk(Averaging(kind="swa", start=start), steps, per_epoch)
    ends = [state for t, state in enumerate(seen) if t / steps >= start and (t + 1) % per_epoch == 0]
    if not ends:
        assert found is None
        return
    assert found.keys() == seen[-1].keys()
    for name, value in found.items():
        mean = torch.stack([state[name].double() for state in ends]).mean(dim=0)
        torch.testing.assert_close(value, mean if value.is_floating_point() else ends[-1][name])


def test_what_does_not_change_is_averaged_to_the_last_bit() -> None:
    model = trainable(numbers(0, 3, 48).float())
    kept: dict[str, Tensor] = {}
    for t in range(50):
        Averaging(start=0.0).after_step(step(model, images_near(0.5, 0.4, 6), LABELS, progress=t / 50, state=kept))
    found = Averaging().final_weights(model, kept)
    assert found is not None
    assert torch.equal(found["weight"], model.weight)


# --- augmentation


def following(batch: Batch, taken: list[Batch]) -> Batch:
    def take(made: Batch) -> Tensor:
        taken.append(made)
        return made.images.sum()

    return replace(batch, following=take)


@pytest.mark.parametrize("defense", [CutMixTraining(), MixUpTraining()])
def test_mixed_images_and_labels_are_those_of_two_images_in_the_same_shares(defense: Any) -> None:
    taken: list[Batch] = []
    x = torch.stack([torch.full((3, 8, 8), i / 8) for i in range(6)])
    model = Normed(classes=3)
    before = GlobalState.now()
    for epoch in range(6):
        batch = following(step(model, x, LABELS, rng=streams(6, seed=epoch)), taken)
        defense.training_loss(batch)
        defense.training_loss(batch)
        assert torch.equal(taken[-1].images, taken[-2].images)
    assert GlobalState.now() == before
    shares = functional.one_hot(LABELS, 3).float()
    found = set()
    for made in taken:
        assert made.labels.shape == (6, 3)
        torch.testing.assert_close(made.labels.sum(dim=1), torch.ones(6))
        # Image i is made of images i and i - 1; the share of the first follows from the mean of the pixels.
        share = (made.images[0].mean() - x[5].mean()) / (x[0].mean() - x[5].mean())
        torch.testing.assert_close(made.labels, share * shares + (1 - share) * shares.roll(1, 0))
        found.add(round(float(share), 6))
    assert len(found) > 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("defense", [AutoAugmentTraining(), RandAugmentTraining()])
def test_an_image_is_transformed_the_same_in_any_batch(defense: Any, channels: int) -> None:
    taken: list[Batch] = []
    x = torch.rand(6, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    before = GlobalState.now()
    whole = following(step(Normed(), x, LABELS), taken)
    defense.training_loss(whole)
    index = torch.tensor([4, 1])
    defense.training_loss(following(step(Normed(), x[index], LABELS[index], rng=streams(6)[index]), taken))
    other = following(step(Normed(), x, LABELS, rng=streams(6, seed=1)), taken)
    defense.training_loss(other)
    assert GlobalState.now() == before
    assert torch.equal(taken[1].images, taken[0].images[index])
    assert not torch.equal(taken[2].images, taken[0].images)
    assert taken[0].images.dtype == x.dtype
    assert bool(((taken[0].images >= 0) & (taken[0].images <= 1)).all())
    assert torch.equal(taken[0].labels, LABELS)


def test_stronger_transforms_change_images_more() -> None:
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changes = []
    for magnitude in (0, 9, 30):
        seen = Seen()
        labels = torch.arange(40) % 3
        model = trainable(numbers(0, 3, 192).float())
        batch = step(model, x, labels, objective=recording(seen))
        RandAugmentTraining(magnitude=magnitude).training_loss(batch)
        changes.append(float((seen.trained[0] - x).abs().mean()))
    assert changes == sorted(changes)
    assert changes[0] < 0.5 * changes[2]
