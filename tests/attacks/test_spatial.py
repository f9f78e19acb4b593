"""The worst of a grid of rotations and shifts, on models that look for one of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from closed_forms import Counting, Linear, assert_allowed, margins, streams
from scipy import ndimage
from torch import Tensor

from robbench.attacks.rotation import rotate
from robbench.attacks.spatial import Spatial, moved
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat

FREE = Threat("none")
SIDE = 16


def pictures(count: int, side: int = SIDE) -> Tensor:
    """Images that end in black before their border."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)
    images[:, :, :3] = images[:, :, -3:] = 0
    images[:, :, :, :3] = images[:, :, :, -3:] = 0
    return images


class Template(Classifier):
    """Class 1 where an image is nearer to a template than some radius: class 0 scores by the squares of both."""

    num_classes = 2

    def __init__(self, template: Tensor, radius: float) -> None:
        super().__init__()
        self.template, self.radius = template, radius

    def forward(self, images: Tensor) -> Tensor:
        score = (images - self.template).flatten(1).square().sum(dim=1) - self.radius**2
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Stubborn(Template):
    """Decides on class 0 always, whatever the scores."""

    def decide(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), torch.zeros(len(images), dtype=torch.int64)


def attacked(model: Classifier, images: Tensor, attack: Spatial, labels: Tensor | None = None) -> Tensor:
    given = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return attack.perturb(model, images, given, FREE, streams(len(images)))


# ---------------------------------------------------------------------------------------------------------------- moves


def test_a_move_by_whole_pixels_is_exact() -> None:
    images = pictures(2)
    torch.testing.assert_close(moved(images, 0, 2, -1), images.roll((2, -1), dims=(2, 3)))
    torch.testing.assert_close(moved(images, 90, 0, 0), images.rot90(1, dims=(2, 3)))
    # What leaves the image is gone, and black comes in.
    white = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    found = moved(white, 0, 3, 0)
    torch.testing.assert_close(found[:, :, :3], torch.zeros_like(found[:, :, :3]))
    torch.testing.assert_close(found[:, :, 3:], white[:, :, 3:])


@pytest.mark.parametrize("degrees", [-30.0, -4.0, 3.0, 77.0])
def test_a_turn_is_that_of_the_natural_rotation(degrees: float) -> None:
    images = pictures(3)
    torch.testing.assert_close(
        moved(images, degrees, 0, 0)[:, :, 3:-3, 3:-3],
        rotate(images, torch.full((3,), degrees))[:, :, 3:-3, 3:-3],
    )


def test_turn_and_shift_are_one_reading() -> None:
    images, degrees, down, right = pictures(2, 20)[:, :, :, :15], 11.0, 1.3, -0.6
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([19, 14]) / 2
    offset = middle - turn @ (middle + np.array([down, right]))
    for image, found in zip(images.flatten(0, 1), moved(images, degrees, down, right).flatten(0, 1), strict=True):
        expected = ndimage.affine_transform(image.numpy(), turn, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_the_grid_holds_every_move_once_and_begins_with_none() -> None:
    moves = Spatial(max_rotation=10.0, rotations=5, max_shift=0.1, shifts=3).moves()
    assert moves[0] == (0, 0, 0)
    assert len(moves) == 45
    assert set(moves) == set(itertools.product((-10, -5, 0, 5, 10), (-0.1, 0, 0.1), (-0.1, 0, 0.1)))
    sizes = [abs(turn) / 10 + abs(down) / 0.1 + abs(right) / 0.1 for turn, down, right in moves]
    assert sizes == pytest.approx(sorted(sizes))
    assert Spatial(rotations=1, shifts=1).moves() == [(0, 0, 0)]


@pytest.mark.parametrize("wrong", [{"rotations": 4}, {"shifts": 2}, {"rotations": 0}, {"max_shift": -0.1}])
def test_a_grid_without_the_image_itself_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Spatial(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("wanted", [(0.0, 2.0, -2.0), (6.0, 0.0, 0.0), (-3.0, 2.0, 0.0), (6.0, -2.0, -2.0)])
def test_the_only_move_that_fools_is_found(wanted: tuple[float, float, float]) -> None:
    images = pictures(1)
    target = moved(images, *wanted)
    attack = Spatial(max_rotation=6.0, rotations=5, max_shift=2 / SIDE, shifts=3)
    model = Template(target, 1e-3).eval()
    others = [(turn, SIDE * down, SIDE * right) for turn, down, right in attack.moves()]
    fooling = [move for move in others if int(model.predict(moved(images, *move))) == 1]
    assert fooling == [pytest.approx(wanted)]
    torch.testing.assert_close(attacked(model, images, attack), target)
    # With a grid that lacks the move, the model is not fooled, and the nearest to it is returned.
    coarse = Spatial(max_rotation=2.5, rotations=3, max_shift=1 / SIDE, shifts=3)
    found = attacked(model, images, coarse)
    assert int(model.predict(found)) == 0
    zero = torch.zeros(1, dtype=torch.int64)
    reached = [
        float(margins(model, moved(images, turn, SIDE * down, SIDE * right), zero))
        for turn, down, right in coarse.moves()
    ]
    assert float(margins(model, found, zero)) == pytest.approx(min(reached))


def test_the_smallest_move_that_fools_is_returned() -> None:
    images = pictures(1)

    class Suspicious(Classifier):
        num_classes = 2

        def forward(self, given: Tensor) -> Tensor:
            same = (given == images).flatten(1).all(dim=1).double()
            return torch.stack([same, 1 - same], dim=1)

        def embed(self, given: Tensor) -> Tensor:
            return given.flatten(1)

    attack = Spatial()
    turn, down, right = attack.moves()[1]
    found = attacked(Suspicious().eval(), images, attack)
    assert torch.equal(found, moved(images, turn, SIDE * down, SIDE * right))
    assert abs(turn) / 5 + (abs(down) + abs(right)) / 0.06 == pytest.approx(1 / 3)


def test_hard_decisions_count_rather_than_scores() -> None:
    images = pictures(1)
    target = moved(images, 0, 2, 0)
    attack = Spatial(rotations=1, max_shift=2 / SIDE)
    # The scores of this move say class 1 and no decision does; all are tried and the smallest margin is kept.
    torch.testing.assert_close(attacked(Stubborn(target, 1.0).eval(), images, attack), target)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_it_is_never_worse_than_the_image_itself(classes: int) -> None:
    weight = torch.randn(classes, 3 * SIDE**2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model, images = Linear(weight, torch.zeros(classes).double()).eval(), pictures(20)
    labels = model.predict(images)
    labels[:3] = (labels[:3] + 1) % classes
    found = attacked(model, images, Spatial(), labels)
    assert_allowed(images, found, FREE)
    fooled = model.predict(found) != labels
    before, after = margins(model, images, labels), margins(model, found, labels)
    assert bool((after <= before)[~fooled].all())
    assert bool(fooled[:3].all())
    assert torch.equal(found[:3], images[:3])
    # Every move of those that are left was no better.
    for turn, down, right in Spatial().moves():
        tried = moved(images, turn, SIDE * down, SIDE * right)
        assert bool((margins(model, tried, labels) >= after - 1e-9)[~fooled].all())
        assert not bool((model.predict(tried) != labels)[~fooled].any())


# ------------------------------------------------------------------------------------------------------------- contract


def test_a_sample_that_nothing_fools_costs_one_pass_per_move_and_others_less() -> None:
    weight = torch.randn(3, 3 * SIDE**2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, images = Linear(weight, torch.tensor([25.0, 0.0, 0.0]).double()).eval(), pictures(12)
    labels = torch.zeros(12, dtype=torch.int64)
    model = Counting.of(plain, 12)
    attack = Spatial(rotations=3)
    found = attacked(model, images, attack, labels)
    held = plain.predict(found) == labels
    assert attack.passes(3) == (27, 0)
    assert Spatial().passes(10) == (63, 0)
    assert Spatial.adversarial
    assert bool(held.any())
    assert not bool(held.all())
    assert model.forwards[held].tolist() == [27] * int(held.sum())
    assert float(model.forwards[~held].max()) <= 27
    assert float(model.backwards.max()) == 0
    at_once = plain.predict(images) != labels
    assert model.forwards[at_once].tolist() == [1] * int(at_once.sum())
