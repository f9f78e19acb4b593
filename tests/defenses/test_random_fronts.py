"""Random changes in front of a model: what is drawn, to whom draws belong, and how they are scored."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from audits import cautions, flags, row
from closed_forms import images_near, linear
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network
from scipy.stats import kstest, norm
from subjects import exact, subject
from torch import Tensor
from torch.nn import functional

from robbench.attacks._gradients import input_gradient
from robbench.core.errors import RequestError
from robbench.core.sample_rng import Streams
from robbench.defenses._random_front import RandomPreprocessing
from robbench.defenses.noise import Noise
from robbench.defenses.resize_pad import ResizePad

EVERY: list[RandomPreprocessing] = [
    *(Noise(), Noise(distribution="uniform"), ResizePad(), ResizePad(smallest=0.3, draws=3, votes=7)),
]


def rng(images: Tensor) -> Streams:
    return Streams.of(torch.arange(len(images)), "test")


def placed(image: Tensor, height: int, width: int, top: int, left: int) -> Tensor:
    """One image resized by torch's own interpolation and padded."""
    small = functional.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
    below, beside = image.shape[1] - height - top, image.shape[2] - width - left
    return functional.pad(small, (left, beside, top, below))


# --- draws


@given(st.integers(3, 9), st.integers(3, 9), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_an_image_is_resized_by_linear_interpolation_and_put_somewhere(height: int, width: int, draw: int) -> None:
    images = 0.1 + 0.9 * torch.rand(2, 3, height, width, dtype=torch.float64)
    found = ResizePad(smallest=0.4).change(images, rng(images), draw)
    assert found.shape == images.shape
    for image, result in zip(images, found, strict=True):
        rows, columns = (result.abs().sum(dim=dims).nonzero().flatten() for dims in ((0, 2), (0, 1)))
        sides = len(rows), len(columns)
        assert all(0.4 * old - 0.5 <= new <= old for new, old in zip(sides, (height, width), strict=True))
        torch.testing.assert_close(result, placed(image, *sides, int(rows[0]), int(columns[0])))


def test_every_size_and_place_is_drawn_about_equally_often() -> None:
    images = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    seen: dict[int, list[tuple[int, int]]] = {}
    for draw in range(1500):
        result = ResizePad(smallest=0.75).change(images, rng(images), draw)[0, 0]
        rows, columns = result.sum(dim=1).nonzero().flatten(), result.sum(dim=0).nonzero().flatten()
        assert len(rows) == len(columns)
        seen.setdefault(len(rows), []).append((int(rows[0]), int(columns[0])))
    assert seen.keys() == {6, 7, 8}
    for size, places in seen.items():
        assert len(places) > 300
        room = range(8 - size + 1)
        assert all(places.count(place) > 0.6 * len(places) / len(room) ** 2 for place in product(room, room))


@pytest.mark.parametrize(("distribution", "law"), [("gaussian", "norm"), ("uniform", "uniform")])
def test_noise_has_its_distribution_and_deviation(distribution: str, law: str) -> None:
    images = images_near(0.5, 0.5, 60)
    defense = Noise(std=0.2, distribution=distribution)  # type: ignore[arg-type]
    noise = ((defense.change(images, rng(images), 3) - images) / 0.2).flatten().numpy()
    assert noise.std() == pytest.approx(1, abs=0.05)
    reach = math.sqrt(3)
    assert kstest(noise, law, () if law == "norm" else (-reach, 2 * reach)).pvalue > 1e-4


def test_fresh_draws_decide_as_often_as_the_closed_form_says() -> None:
    base, images = linear(3, 2), images_near(0.5, 0.02, 12)
    slope, scores = base.weight[1] - base.weight[0], base(images)
    wrapped = Noise(std=0.3).wrap(base)
    found = wrapped.counts(images, 2000)[:, 1] / 2000  # type: ignore[operator]
    expected = norm.cdf(((scores[:, 1] - scores[:, 0]) / (0.3 * slope.norm())).numpy())
    assert float(abs(found.numpy() - expected).max()) < 4 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("defense", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_belong_to_the_image_and_the_stream(defense: RandomPreprocessing, dtype: torch.dtype) -> None:
    model = defense.wrap(Network().to(dtype).eval().requires_grad_(False))
    images = torch.rand(7, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    scores, predicted = model.decide(images)
    assert torch.equal(model(images), scores)
    torch.testing.assert_close(model(images[order]), scores[order])
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), scores)
    assert torch.equal(torch.cat([model.predict(image[None]) for image in images]), predicted)
    model.redraw(1)
    assert not torch.allclose(model(images), scores)
    model.redraw(0)
    assert torch.equal(model(images), scores)
    assert (model.draws, model.votes) == (defense.draws, defense.votes)
    assert model.decide(images[:0])[0].shape == (0, 3)


@pytest.mark.parametrize("defense", EVERY, ids=str)
def test_every_draw_is_differentiated(defense: RandomPreprocessing) -> None:
    model = defense.wrap(Network().double().eval().requires_grad_(False))
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def held(changed: Tensor) -> Tensor:
        # Other images have other draws, so that differences are taken along fixed ones.
        copies = [defense.change(changed, rng(images), draw) for draw in range(3)]
        return torch.stack(copies).square().mean(dim=0)

    assert torch.autograd.gradcheck(held, images.requires_grad_(), eps=1e-7, atol=1e-5)
    assert bool(input_gradient(lambda x: model(x)[:, 0].sum(), images.detach()).any())
    assert defense.gradients == "expectation"


# --- the audit


@pytest.mark.parametrize("defense", [Noise(std=0.05), ResizePad()], ids=str)
def test_the_audit_asks_for_draws_and_votes(defense: RandomPreprocessing) -> None:
    few = type(defense)(draws=defense.draws, votes=10)
    cells = row(subject(defense.wrap(exact(4)), wrong=0), "pgd[steps=20]@0.05", "fgsm@0.05")
    assert flags(cells) == {}
    assert "randomized" in cautions(cells)
    assert cells[1][1].robust.mean() < 0.9
    assert "randomized" in flags(row(subject(few.wrap(exact(4)), wrong=0), "pgd[steps=20]@0.05"))


def test_a_random_front_without_a_gradient_is_found_out() -> None:
    class Cut(Noise):
        def change(self, images: Tensor, rng: Streams, draw: int) -> Tensor:
            return super().change(images.detach(), rng, draw)

    cells = row(subject(Cut(std=0.05).wrap(exact(4)), wrong=0), "pgd[steps=20]@0.05", "square[queries=20]@0.05")
    assert "zero-gradient" in flags(cells)
    assert "no-gradient" in cautions(cells)


def test_parameters_out_of_range_are_refused() -> None:
    for make, message in (
        (lambda: Noise(std=0), "std"),
        (lambda: Noise(distribution="poisson"), "distribution"),  # type: ignore[arg-type]
        (lambda: ResizePad(smallest=1.1), "smallest"),
        (lambda: ResizePad(votes=0), "votes"),
    ):
        with pytest.raises(RequestError, match=message):
            make()
