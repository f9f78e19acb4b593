"""The bookkeeping of attacks: who is left, what is charged, and which images are kept."""

from __future__ import annotations

import torch
from closed_forms import SIZE, Counting, Linear, images_near, linear, margins, numbers, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robbench.attacks._gradients import steepest_step
from robbench.attacks._survivors import Kept, Survivors, staying
from robbench.core.threat_model import Threat

COUNT = 6


def everyone(classes: int = 3, targeted: bool = False) -> tuple[Counting, Survivors]:
    model, images = Counting.of(linear(3, classes), COUNT), images_near(0.5, 0.3, COUNT)
    labels = torch.arange(COUNT) % classes
    return model, Survivors.of(model, images, labels, Threat("linf", 0.1, targeted), streams(COUNT))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=COUNT, max_size=COUNT), max_size=4))
def test_survivors_keep_their_places_their_rows_and_their_costs(masks: list[list[bool]]) -> None:
    model, left = everyone()
    whole, places, spent = left, torch.arange(COUNT), torch.zeros(COUNT)
    for mask in masks:
        kept = torch.tensor(mask)[: len(left)]
        left, places = left[kept], places[kept]
        assert torch.equal(left.index, places)
        assert torch.equal(left.images, whole.images[places])
        assert torch.equal(left.labels, whole.labels[places])
        assert torch.equal(left.rng.bits("draw", (2,)), whole.rng.bits("draw", (2,))[places])
        assert torch.equal(left.fools(left.images), model.model.predict(left.images) != left.labels)
        spent[places] += 1
    assert torch.equal(model.forwards, spent)
    alone = left.alone()
    assert torch.equal(alone.index, torch.arange(len(left)))
    assert torch.equal(alone.images, left.images)


def test_nobody_left_asks_nothing() -> None:
    model, left = everyone()
    nobody = left[torch.zeros(COUNT, dtype=torch.bool)]
    assert not nobody
    assert nobody.fools(nobody.images).shape == (0,)
    assert float(model.forwards.sum()) == 0


def test_a_mask_that_holds_everywhere_copies_nothing() -> None:
    _, left = everyone()
    assert left[torch.ones(COUNT, dtype=torch.bool)] is left


def test_gradient_and_look_agree_with_the_closed_form() -> None:
    for targeted in (False, True):
        model, left = everyone(2, targeted)
        inner = model.model
        assert isinstance(inner, Linear)
        g, value, fooled = left.gradient(left.images, left.gain("margin"))
        away = -1 if not targeted else 1
        slopes = away * (inner.weight[left.labels] - inner.weight[1 - left.labels])
        torch.testing.assert_close(g.flatten(1), slopes)
        torch.testing.assert_close(value, away * margins(inner, left.images, left.labels))
        assert torch.equal(fooled, value > 0)
        seen, again = left.look(left.images, left.gain("margin"))
        assert torch.equal(seen, value)
        assert torch.equal(again, fooled)
        assert model.forwards.tolist() == [2.0] * COUNT
        assert model.backwards.tolist() == [1.0] * COUNT
        assert steepest_step(left.images, g, "linf", 0.1).abs().max() <= 0.1


offers = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=COUNT, max_size=COUNT), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(offers, st.booleans())
def test_what_fools_is_kept_before_what_does_not_then_the_highest_value_or_the_latest(
    rounds: list[list[tuple[bool, int]]], valued: bool
) -> None:
    _, left = everyone()
    kept = Kept.of(left.images)
    tried: list[Tensor] = []
    for number, offered in enumerate(rounds):
        fooled = torch.tensor([hit for hit, _ in offered])
        value = torch.tensor([float(score) for _, score in offered], dtype=left.images.dtype)
        tried.append(numbers(number, COUNT, SIZE).reshape(left.images.shape))
        kept.offer(left, tried[-1], fooled, value if valued else None)
    for sample in range(COUNT):
        ranks = [
            (offered[sample][0], offered[sample][1] if valued else number, -number)
            for number, offered in enumerate(rounds)
        ]
        best = ranks.index(max(ranks))
        assert torch.equal(kept.images[sample], tried[best][sample])
        assert bool(kept.fooled[sample]) == ranks[best][0]


def test_records_stay_themselves_where_nobody_leaves_and_shrink_together_otherwise() -> None:
    _, left = everyone()
    values = torch.arange(COUNT)
    same, untouched, nothing = staying(values >= 0, left, values, None)
    assert same is left
    assert untouched is values
    assert nothing is None
    fewer, shrunk, nothing = staying(values % 2 == 1, left, values, None)
    assert fewer.index.tolist() == shrunk.tolist() == [1, 3, 5]
    assert nothing is None
