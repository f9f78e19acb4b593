"""Corruptions: what all of them are held to, and how strong they are. What each one does is in the file beside it."""

from __future__ import annotations

import itertools

import pytest
import torch
from closed_forms import linear, streams
from hypothesis import given, settings
from hypothesis import strategies as some
from scenes import scenes
from subjects import CLASSES, REGISTRY, condition
from torch import Tensor
from torch.nn import functional

from robbench.attacks._corruption_digital import elastic_transform
from robbench.attacks.corruption import Corruption, suite
from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES, CorruptionKind
from robbench.core.errors import RequestError
from robbench.core.threat_model import Threat
from robbench.planning.conditions import ConditionRequest

KINDS = (*MAIN, *EXTRA)
SIZES = [(8, 8), (28, 28), (32, 32), (64, 48)]

# Which severities follow each other upwards in the L2 norm of the change, where the published numbers allow it.
RISING: dict[CorruptionKind, tuple[tuple[int, ...], ...]] = {kind: (SEVERITIES,) for kind in KINDS} | {
    "glass-blur": ((2, 4), (3, 5)),  # a stronger Gaussian hides some of the shuffling; a second round does not
    "motion-blur": ((1, 2, 3), (4, 5)),  # at severity 4 only the radius is larger, where nothing is left to smear
    "frost": ((1, 2),),  # from severity 3 on, the image fades while the ice grows, and both may meet
    "elastic-transform": (),  # the affine part shrinks while the local part grows: see the test of its own
    "spatter": ((1, 2, 3), (4, 5)),  # water, then mud
    "saturate": ((1, 2), (3, 4, 5)),  # towards gray, then towards full color
}


def correlation(first: Tensor, second: Tensor) -> float:
    one, other = (images.flatten(1) - images.flatten(1).mean(dim=1, keepdim=True) for images in (first, second))
    return float(functional.cosine_similarity(one, other).mean())


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_stay_images(kind: CorruptionKind, height: int, width: int) -> None:
    images, rng, state = scenes(3, height, width), streams(3), torch.get_rng_state()
    before = images.clone()
    for severity in (1, 5):
        attack = Corruption(kind, severity)
        found = attack.perturb(linear(0, 2), images, torch.zeros(3), Threat("none"), rng)
        assert found.shape == images.shape
        assert found.dtype == images.dtype
        assert bool(found.isfinite().all())
        assert bool(((found >= 0) & (found <= 1)).all())
        assert torch.equal(attack.apply(images, rng), found)
        # A few drops of water may miss a small image.
        assert bool((found != images).any())
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_black_white_and_gray_stay_images_too(kind: CorruptionKind) -> None:
    images = torch.tensor([0.0, 1.0, 0.5])[:, None, None, None].expand(3, 3, 16, 16)
    for severity in SEVERITIES:
        found = Corruption(kind, severity).apply(images, streams(3))
        assert bool(found.isfinite().all())
        assert bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_and_order_change_nothing(kind: CorruptionKind) -> None:
    images, rng, attack = scenes(23, 16, 16, torch.float64), streams(23), Corruption(kind, 4)
    whole = attack.apply(images, rng)
    assert whole.dtype == torch.float64
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    for size in (1, 7):
        for index in order.split(size):
            torch.testing.assert_close(attack.apply(images[index], rng[index]), whole[index], rtol=0, atol=1e-12)
    assert attack.apply(images[:0], rng[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_decide_what_is_drawn(kind: CorruptionKind) -> None:
    images, attack = scenes(4), Corruption(kind)
    one, other = (attack.apply(images, streams(4, seed)) for seed in (0, 1))
    drawless = {"defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "jpeg-compression"}
    assert torch.equal(one, other) == (kind in drawless | {"gaussian-blur", "saturate"})


@pytest.mark.parametrize("kind", KINDS)
def test_higher_severities_change_images_more(kind: CorruptionKind) -> None:
    images = scenes(24)
    change = {
        severity: float((Corruption(kind, severity).apply(images, streams(24)) - images).flatten(1).norm(dim=1).mean())
        for severity in SEVERITIES
    }
    for severities in RISING[kind]:
        sizes = [change[severity] for severity in severities]
        assert all(low < high for low, high in itertools.pairwise(sizes)), change


def test_radii_of_motion_blur_alone_change_next_to_nothing() -> None:
    images = scenes(8)
    third, fourth = (Corruption("motion-blur", severity).apply(images, streams(8)) for severity in (3, 4))
    torch.testing.assert_close(third, fourth, rtol=0, atol=1e-6)


def test_frost_hides_more_and_more_of_the_image() -> None:
    images = scenes(24)
    likeness = [correlation(Corruption("frost", s).apply(images, streams(24)), images) for s in SEVERITIES]
    assert likeness == sorted(likeness, reverse=True)


def test_the_local_part_of_elastic_transforms_grows() -> None:
    images = scenes(24)
    local = ((0, 0), (0.05, 0.2), (0.08, 0.06), (0.1, 0.04), (0.1, 0.03))
    moved = [elastic_transform(images, streams(24), amount, sigma, 0) for amount, sigma in local]
    sizes = [float((found - images).norm()) for found in moved]
    assert sizes == sorted(sizes)
    assert sizes[0] == pytest.approx(0, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    kind=some.sampled_from(KINDS),
    severity=some.sampled_from(SEVERITIES),
    height=some.integers(4, 40),
    width=some.integers(4, 40),
)
def test_odd_sizes_are_no_problem(kind: CorruptionKind, severity: int, height: int, width: int) -> None:
    images = scenes(2, height, width)
    found = Corruption(kind, severity).apply(images, streams(2))
    assert found.shape == images.shape
    assert bool(((found >= 0) & (found <= 1)).all())


def test_the_suite_is_every_kind_at_every_severity() -> None:
    assert len(suite()) == 75
    assert len(set(suite(extra=True))) == 95
    assert suite(extra=True)[:75] == suite()
    assert [attack.severity for attack in suite()[:6]] == [1, 2, 3, 4, 5, 1]
    assert [attack.kind for attack in suite(extra=True)[::5]] == list(KINDS)


def test_a_condition_names_kind_and_severity() -> None:
    found = condition("corruption[kind=fog,severity=3]")
    assert found.kind == "natural"
    assert found.stages[0].attack.component == Corruption("fog", 3)
    # What is at its default is left out of a label, as everywhere.
    assert {condition(found.label), condition("corruption[kind=fog]")} == {found, condition("corruption[kind=fog]")}
    labels = {condition(f"corruption[kind={a.kind},severity={a.severity}]").label for a in suite(extra=True)}
    assert len(labels) == 95


def test_words_stand_for_parts_of_the_suite() -> None:
    assert Corruption().variants("each") == suite()
    assert Corruption().variants("all") == suite(extra=True)
    assert Corruption("fog").variants("severities") == tuple(Corruption("fog", severity) for severity in SEVERITIES)
    assert Corruption().variants("0.1") == ()
    found = ConditionRequest.read("corruption@each", "test").resolve(REGISTRY, {}, CLASSES, "test")
    assert [one.label for one in found[:2]] == [f"corruption[kind=gaussian-noise,severity={s}]" for s in (1, 2)]
    assert len({one.label for one in found}) == 75
    assert {one.kind for one in found} == {"natural"}


@pytest.mark.parametrize("wrong", [{"kind": "rain"}, {"severity": 0}, {"severity": 6}, {"severity": 2.5}])
def test_what_is_not_in_the_suite_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Corruption(**wrong)  # type: ignore[arg-type]
