"""Randomized smoothing against what is known of linear models, and how its noise is drawn."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import tiny
import torch
from closed_forms import Linear, assert_optimal, images_near, linear, margins, numbers, streams
from galleries import neighbors
from networks import SHAPE, Network
from scipy.stats import binomtest, kstest, norm
from torch import Tensor
from torch.nn import functional
from training_steps import Seen, recording, step, trainable

from robbench.attacks._gradients import input_gradient
from robbench.attacks.fgm import FGM
from robbench.attacks.pgd import PGD
from robbench.certificates.smoothing import certified_radius
from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.threat_model import Threat
from robbench.defenses.bit_depth import BitDepth
from robbench.defenses.smoothing import Smoothed, Smoothing
from robbench.evaluation.query_counter import Oracle
from robbench.evaluation.referee import fair_play
from robbench.execution.jobs import carry_out
from robbench.results.store import Store


class Echo(Classifier):
    """Keeps the images that it sees."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return images.flatten(1)[:, :2]

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def smoothed(model: Classifier, sigma: float = 0.25, draws: int = 16, votes: int = 100) -> Smoothed:
    wrapped = Smoothing(sigma=sigma, draws=draws, votes=votes).wrap(model)
    assert isinstance(wrapped, Smoothed)
    return wrapped


# --- the certificate


@pytest.mark.parametrize(("draws", "radius"), [(10_000, 3.2), (100_000, 3.81)])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_radius_where_all_draws_agree(draws: int, radius: float, sigma: float) -> None:
    found = certified_radius(draws, draws, sigma, 0.001)
    assert found == pytest.approx(radius * sigma, abs=0.005 * sigma)
    # All right with probability p^n: the bound solves p^n = alpha.
    assert found == pytest.approx(sigma * norm.ppf(0.001 ** (1 / draws)))


@pytest.mark.parametrize(("successes", "draws"), [(0, 100), (50, 100), (51, 100), (70, 100), (990, 1000), (100, 100)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_radius_follows_the_exact_lower_bound(successes: int, draws: int, alpha: float) -> None:
    lower = binomtest(successes, draws, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    expected = max(0.0, norm.ppf(lower)) if lower > 0 else 0.0
    assert certified_radius(successes, draws, 2.0, alpha) == pytest.approx(2 * expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_radius_of_a_linear_model_is_its_distance_for_every_sigma(sigma: float) -> None:
    base, images = linear(3, 2), images_near(0.5, 0.05, 24)
    labels = base.predict(images)
    distance = margins(base, images, labels) / (base.weight[1] - base.weight[0]).norm()
    draws = 1000
    found = smoothed(base, sigma).counts(images, draws).gather(1, labels[:, None]).flatten()
    share = norm.cdf(distance.numpy() / sigma)
    assert float(abs(found.numpy() / draws - share).max()) < 4 * 0.5 / math.sqrt(draws)
    radii = [certified_radius(int(count), draws, sigma, 0.001) for count in found]
    assert all(radius <= d for radius, d in zip(radii, distance.tolist(), strict=True))
    # What is lost is what 1,000 draws cannot tell, unless so many are right that there is nothing to tell.
    for radius, d in zip(radii, distance.tolist(), strict=True):
        if d < 2 * sigma:
            assert radius == pytest.approx(d, abs=0.35 * sigma)


def test_no_attack_within_the_radius_succeeds_and_one_beyond_does() -> None:
    base, images = linear(3, 2), images_near(0.5, 0.05, 40)
    labels = base.predict(images)
    distance = margins(base, images, labels) / (base.weight[1] - base.weight[0]).norm()
    model = smoothed(base, sigma=0.1)
    eps = float(distance.median())
    attacked = PGD(steps=5, early_stop=False, random_start=False).perturb(
        model, images, labels, Threat("l2", eps), streams(40)
    )
    fooled = model.predict(attacked) != labels
    # The median of 100 draws lies within half a sigma of the mean, with four standard deviations to spare.
    assert not fooled[distance > eps + 0.05].any()
    assert fooled[distance < eps - 0.05].all()
    assert 0 < int(fooled.sum()) < 40


# --- noise


def test_noise_is_normal_and_independent_across_draws_images_and_values() -> None:
    echo = Echo()
    images = images_near(0.5, 0.5, 30)
    smoothed(echo, sigma=0.3, draws=20)(images)
    (seen,) = echo.seen
    noise = (seen.reshape(20, 30, 48) - images.flatten(1)) / 0.3
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    for dim in range(3):
        parts = noise.movedim(dim, 0).flatten(1)
        correlation = torch.corrcoef(parts) - torch.eye(len(parts))
        assert float(correlation.abs().max()) < 6 / math.sqrt(parts.shape[1])
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_noise_belongs_to_the_image_and_the_stream() -> None:
    model, images = smoothed(linear(3, 3)), images_near(0.5, 0.05, 9)
    other, first = copy.deepcopy(model), model(images)
    assert torch.equal(model(images), first)
    assert torch.equal(other(images), first)
    torch.testing.assert_close(torch.cat([model(images[:4]), model(images[4:])]), first)
    model.redraw(1)
    assert not torch.equal(model(images), first)
    model.redraw(0)
    assert torch.equal(model(images), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_belongs_to_the_image_wherever_it_stands(dtype: torch.dtype) -> None:
    images = images_near(0.5, 0.5, 7).to(dtype)
    echoes = [Echo(), Echo(), Echo()]
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    for echo, given in zip(echoes, (images, images[order], images[:1]), strict=True):
        smoothed(echo, draws=3)(given)
    together, mixed, alone = (echo.seen[0].reshape(3, -1, 48) for echo in echoes)
    assert torch.equal(together[:, order], mixed)
    assert torch.equal(together[:, :1], alone)
    # The two kinds of float hold the same images, so that noise is the same but for rounding.
    assert together.dtype == dtype


def test_the_count_does_not_depend_on_how_many_images_are_judged_together() -> None:
    base, images = linear(3, 3), images_near(0.5, 0.05, 30)
    together = smoothed(base).counts(images, 100)
    alone = torch.cat([smoothed(base).counts(image[None], 100) for image in images])
    assert torch.equal(together, alone)
    assert together.sum(dim=1).tolist() == [100] * 30


def test_the_callers_random_state_stays_and_the_model_is_left_alone() -> None:
    model = smoothed(Network().eval().requires_grad_(False))
    images, labels = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    oracle = Oracle(model, 4)
    with fair_play(model, images, labels):
        FGM().perturb(oracle, images, labels, Threat("linf", 0.1), streams(4))
    assert oracle.spent.tolist() == [[16.0 + 100] * 4, [16.0] * 4]
    assert list(model.state_dict()) == [f"model.{name}" for name in model.model.state_dict()]


# --- scores


def test_scores_are_the_log_of_the_mean_probability_under_the_noise() -> None:
    echo, base, images = Echo(), linear(3, 3), images_near(0.5, 0.05, 5)
    smoothed(echo, draws=8)(images)
    noisy = echo.seen[0].reshape(8, 5, *images.shape[1:])
    mean = torch.stack([base(part).softmax(dim=1) for part in noisy]).mean(dim=0)
    scores = smoothed(base, draws=8)(images)
    torch.testing.assert_close(scores, mean.log())
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_decisions_are_the_votes_of_the_model_and_not_the_scores() -> None:
    gallery = torch.rand(15, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner, images = neighbors(gallery, torch.arange(15) % 3, k=3), images_near(0.5, 0.5, 6)
    echo = Echo()
    smoothed(echo, votes=60).predict(images)
    noisy = torch.cat(echo.seen).reshape(60, 6, *images.shape[1:])
    votes = torch.stack([functional.one_hot(inner.predict(part), 3) for part in noisy]).sum(dim=0)
    model = smoothed(inner, votes=60)
    assert torch.equal(model.counts(images, 60), votes)
    assert torch.equal(smoothed(inner, votes=60).predict(images), votes.argmax(dim=1))
    for name in (*inner.surrogates, "votes"):
        view = smoothed(inner, votes=60).surrogate(name)
        assert torch.equal(view.predict(images), votes.argmax(dim=1))
    assert model.surrogates == inner.surrogates
    # Scores and decisions of one call have draws of their own.
    scores, decisions = smoothed(inner, votes=60).decide(images)
    assert torch.equal(scores, smoothed(inner, votes=60)(images))
    assert decisions.shape == (6,)


def test_an_empty_batch_has_empty_answers() -> None:
    model = smoothed(linear(3, 3))
    scores, decisions = model.decide(images_near(0.5, 0.5, 0))
    assert scores.shape == (0, 3)
    assert decisions.shape == (0,)
    assert model.embed(images_near(0.5, 0.5, 2)).shape == (2, 48)


def test_votes_keep_no_gradient() -> None:
    model = smoothed(linear(3, 3).requires_grad_())
    images = images_near(0.5, 0.5, 3).requires_grad_()
    scores, decisions = model.decide(images)
    assert scores.requires_grad
    assert not decisions.requires_grad


# --- expectation over draws


@pytest.mark.parametrize("norm_name", ["linf", "l2"])
def test_one_step_is_the_best_attack_on_a_smoothed_linear_model(norm_name: str) -> None:
    class Through(FGM):
        def perturb(self, model, images, labels, threat, rng):  # type: ignore[no-untyped-def]
            return super().perturb(smoothed(model, draws=4, votes=1), images, labels, threat, rng)

    assert_optimal(Through(), norm_name, 0.3)  # type: ignore[arg-type]


def decoys(count: int = 30) -> Linear:
    """Class 0 everywhere but beyond 0.1 along the first axis, where it is class 1, and far along others."""
    weight = 40 * torch.eye(count + 2, 48, dtype=torch.float64).roll(1, 0)
    weight[0] = 0
    room = torch.full((count + 2,), 0.5, dtype=torch.float64)
    room[0], room[1] = 0, 0.1
    return Linear(weight, -weight.sum(dim=1) / 2 - 40 * room).eval()


def test_the_variance_of_a_gradient_falls_as_draws_are_averaged() -> None:
    base, image = linear(3, 3), images_near(0.5, 0.05, 1)
    variance = {}
    for draws in (1, 16):
        model = smoothed(base, draws=draws)
        gradients = []
        for stream in range(150):
            model.redraw(stream)
            gradients.append(input_gradient(lambda x, m=model: m(x)[:, 0].exp().sum(), image))  # type: ignore[misc]
        variance[draws] = float(torch.stack(gradients).var(dim=0).sum())
    assert 8 < variance[1] / variance[16] < 32


def test_an_attack_over_more_draws_succeeds_more() -> None:
    base, images = decoys(), images_near(0.5, 0.001, 100)
    labels, threat = torch.zeros(100, dtype=torch.int64), Threat("l2", 0.3)
    assert torch.equal(base.predict(images), labels)
    fooled = {}
    for draws in (1, 16):
        model = smoothed(base, sigma=0.2, draws=draws, votes=200)
        assert float((model.predict(images) == labels).double().mean()) > 0.9
        attacked = FGM().perturb(model, images, labels, threat, streams(100))
        fooled[draws] = float((model.predict(attacked) == 1).double().mean())
    assert fooled[16] > 0.9
    assert fooled[1] < fooled[16] - 0.2


# --- the defense


def test_it_trains_under_noise_of_its_strength() -> None:
    seen, images = Seen(), torch.full((200, 3, 4, 4), 0.5, dtype=torch.float64)
    model = trainable(numbers(0, 3, 48))
    Smoothing(sigma=0.4).training_loss(step(model, images, torch.zeros(200).long(), objective=recording(seen)))
    noise = (seen.trained[0] - images).flatten().numpy() / 0.4
    assert kstest(noise, "norm").pvalue > 1e-4


def test_its_parameters_are_checked() -> None:
    assert Registry(installed=False).entry("defense", "smoothing", "").cls is Smoothing
    assert Smoothing.gradients == "expectation"
    assert Smoothing().votes == 100
    with pytest.raises(RequestError, match="sigma"):
        Smoothing(sigma=0)


def test_behind_another_defense_it_keeps_its_draws() -> None:
    images = images_near(0.5, 0.5, 4)
    wrapped = BitDepth(bits=2).wrap(smoothed(linear(3, 3), draws=8))
    assert wrapped.draws == 8
    assert torch.equal(wrapped(images), smoothed(linear(3, 3), draws=8)(BitDepth(bits=2).change(images)))
    inside = smoothed(BitDepth(bits=2).wrap(linear(3, 3)), draws=8)
    assert bool(input_gradient(lambda x: inside(x)[:, 0].sum(), images).any())


def test_a_smoothed_model_runs_whole_and_the_same_when_it_is_resumed(tmp_path: Path) -> None:
    outcomes = []
    for name, halves in (("at-once", [slice(None)]), ("resumed", [slice(1, 2), slice(None)])):
        plan = tiny.make(
            tmp_path / name,
            ["defense = 'fgm+smoothing[draws=2,votes=5]'"],
            ("clean", "pgd[steps=2]@ref"),
            "epochs = 1",
            limit=20,
        )
        (job,) = plan.jobs
        store = Store(plan.request.out)
        for half in halves:
            waiting = [cell for cell in job.cells[half] if not store.finished(cell.key)]
            carry_out(plan, job, waiting, lambda progress: None)
        records = [record for cell in job.cells if (record := store.record(cell.key))]
        assert [record.status for record in records] == ["done", "done"]
        outcomes.append([store.outcome(record) for record in records])
    for first, second in zip(*outcomes, strict=True):
        for field in ("clean", "final", "linf", "l2", "forwards"):
            assert (getattr(first, field) == getattr(second, field)).all(), field
