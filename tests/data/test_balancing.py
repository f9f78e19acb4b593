from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robbench.core.contracts import Balancer, Samples
from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.core.sample_rng import Streams
from robbench.data.balancing.augmentation import Augmentation, AugmentationSampler, OnlineAugmentation, Transforming
from robbench.data.balancing.class_weights import ClassWeights
from robbench.data.balancing.none import Unbalanced
from robbench.data.balancing.resampling import Oversampling, Sampler
from robbench.data.balancing.smote import SMOTE
from robbench.data.datasets.cifar10 import CIFAR10
from robbench.data.datasets.digits import Digits

BALANCERS = {
    "none": Unbalanced(),
    "sampler": Sampler(),
    "oversampling": Oversampling(),
    "class-weights": ClassWeights(),
    "smote": SMOTE(),
    "augmentation": Augmentation(),
    "augmentation-sampler": AugmentationSampler(),
    "online-augmentation": OnlineAugmentation(),
}
RESAMPLING = [name for name in BALANCERS if name not in ("none", "class-weights", "online-augmentation")]


def samples(sizes: tuple[int, ...], side: int = 8, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.randperm(count, generator=generator)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Samples(images, labels[order], torch.arange(count) * 3)


def smooth(count: int, side: int = 32) -> Tensor:
    """Images without edges, so that resampling them hardly blurs: some waves in the middle, gray at the border."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    window = (torch.cos(torch.pi * x / 2) * torch.cos(torch.pi * y / 2)) ** 4
    waves = [torch.sin((3 + i) * x + (1 + i) * y + i) for i in range(count)]
    return torch.stack([(0.5 + 0.4 * window * wave).expand(3, side, side) for wave in waves])


def counted(found: Samples) -> list[int]:
    return torch.bincount(found.labels).tolist()


def test_all_are_registered() -> None:
    entries = Registry(installed=False).entries("balancer")
    assert {name: type(balancer) for name, balancer in BALANCERS.items()} == {
        name: entries[name].cls for name in BALANCERS
    }


# ---------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", RESAMPLING)
def test_the_seed_decides(name: str) -> None:
    given_ = samples((40, 9, 5))
    one, again, other = (BALANCERS[name].resample(given_, Digits(), seed)[0] for seed in (7, 7, 8))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(one.ids, again.ids)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("sizes", [(30, 7, 4), (6, 6, 6), (5, 9), (3, 3, 4, 3, 3)])
def test_samples_stay_real_or_get_ids_of_their_own(name: str, sizes: tuple[int, ...]) -> None:
    given_ = samples(sizes)
    before = given_.images.clone()
    found, _ = BALANCERS[name].resample(given_, Digits(), 0)
    assert torch.equal(given_.images, before)
    assert found.images.dtype == torch.uint8
    assert found.images.shape[1:] == given_.images.shape[1:]
    assert len(found.images) == len(found.labels) == len(found.ids)
    assert len(found.ids.unique()) == len(found.ids)
    real = found.ids < 2**40
    position = {int(id_): i for i, id_ in enumerate(given_.ids)}
    where = torch.tensor([position[int(id_)] for id_ in found.ids[real]])
    assert torch.equal(found.images[real], given_.images[where])
    assert torch.equal(found.labels[real], given_.labels[where])


@pytest.mark.parametrize("name", ["none", "sampler", "oversampling", "smote", "class-weights", "online-augmentation"])
def test_balanced_sets_stay_as_they_are(name: str) -> None:
    given_ = samples((6, 6, 6))
    found, notes = BALANCERS[name].resample(given_, Digits(), 0)
    assert torch.equal(found.images, given_.images)
    assert torch.equal(found.ids, given_.ids)
    assert notes == ()
    weights = BALANCERS[name].class_weights(torch.tensor([6, 6, 6]))
    assert weights is None or torch.equal(weights, torch.full((3,), 3.0))


@pytest.mark.parametrize("name", [name for name in BALANCERS if name != "class-weights"])
def test_only_class_weights_weigh(name: str) -> None:
    assert BALANCERS[name].class_weights(torch.tensor([6, 3])) is None


# ----------------------------------------------------------------------------------------------------------- resampling


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_the_sampler_keeps_the_size_and_makes_counts_equal(sizes: list[int]) -> None:
    given_ = samples(tuple(sizes), side=2)
    found, _ = Sampler().resample(given_, Digits(), 1)
    each, more = divmod(sum(sizes), len(sizes))
    assert counted(found) == [each + (label < more) for label in range(len(sizes))]
    used = Counter(bytes(image.numpy().tobytes()) for image in found.images)
    for label, size in enumerate(sizes):
        images = [image.numpy().tobytes() for image in given_.images[given_.labels == label]]
        times = [used[image] for image in images]
        if size >= counted(found)[label]:
            assert max(times) == 1  # larger classes are drawn from without repetition
        else:
            assert min(times) >= 1  # smaller classes are there in full


def test_study_counts() -> None:
    given_ = samples((4949, 466, 210), side=1)
    assert counted(Sampler().resample(given_, CIFAR10(), 0)[0]) == [1875, 1875, 1875]
    assert len(SMOTE().resample(given_, CIFAR10(), 0)[0]) == 14847
    assert counted(Oversampling().resample(given_, CIFAR10(), 0)[0]) == [4949] * 3
    assert counted(Augmentation().resample(given_, CIFAR10(), 0)[0]) == [9898, 932, 420]
    assert counted(AugmentationSampler().resample(given_, CIFAR10(), 0)[0]) == [3750] * 3


def test_oversampling_draws_what_imblearn_draws() -> None:
    from imblearn.over_sampling import RandomOverSampler

    given_ = samples((20, 6, 3))
    found, _ = Oversampling().resample(given_, Digits(), 5)
    sampler = RandomOverSampler(random_state=5)
    images, labels = sampler.fit_resample(given_.images.flatten(1).numpy(), given_.labels.numpy())
    wanted = Counter((row.tobytes(), int(label)) for row, label in zip(images, labels, strict=True))
    assert wanted == Counter(
        (row.numpy().tobytes(), int(label)) for row, label in zip(found.images, found.labels, strict=True)
    )


def test_class_weights_are_inverse_shares() -> None:
    weights = ClassWeights().class_weights(torch.tensor([4949, 466, 210]))
    torch.testing.assert_close(weights, torch.tensor([5625 / 4949, 5625 / 466, 5625 / 210]))
    assert ClassWeights().refusal(torch.tensor([3, 1])) is None
    assert ClassWeights().refusal(torch.tensor([3, 0])) is not None


# ---------------------------------------------------------------------------------------------------------------- smote


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 15), min_size=2, max_size=4), st.integers(0, 100))
def test_made_up_images_lie_between_near_neighbors_of_their_class(sizes: list[int], seed: int) -> None:
    given_ = samples(tuple(sizes), side=2, seed=seed)
    found, notes = SMOTE().resample(given_, Digits(), seed)
    assert counted(found) == [max(sizes)] * len(sizes)
    assert torch.equal(found.images[: len(given_)], given_.images)
    neighbors = min(5, min(sizes) - 1)
    assert (len(notes) == 1 and f"from {neighbors} nearest" in notes[0]) or len(set(sizes)) == 1
    for image, label in zip(found.images[len(given_) :], found.labels[len(given_) :], strict=True):
        real = given_.images[given_.labels == label].flatten(1).double()
        distance = torch.cdist(real, real)
        reach = distance.sort(dim=1).values[:, neighbors]
        x, y = real[:, None], real[None]
        step = y - x
        square = (step**2).sum(-1).clamp_min(1e-9)
        along = (((image.flatten().double() - x) * step).sum(-1) / square).clamp(0, 1)
        off = (x + along[..., None] * step - image.flatten().double()).norm(dim=-1)
        # Rounding moves each of 12 values by at most one half.
        assert ((off <= 0.5 * 12**0.5 + 1e-3) & (distance <= reach[:, None] + 1e-6)).any()


def test_smote_makes_what_imblearn_makes() -> None:
    from imblearn.over_sampling import SMOTE as Imblearn

    given_ = samples((20, 8, 4))
    found, _ = SMOTE().resample(given_, Digits(), 3)
    pixels = given_.images.flatten(1).numpy() / np.float32(255)
    wanted, labels = Imblearn(k_neighbors=3, random_state=3).fit_resample(pixels, given_.labels.numpy())
    assert np.abs(found.images.flatten(1).numpy() - wanted * 255).max() <= 0.501
    np.testing.assert_array_equal(found.labels.numpy(), labels)


def test_smote_refuses_a_single_image() -> None:
    assert SMOTE().refusal(torch.tensor([9, 1])) is not None
    assert SMOTE().refusal(torch.tensor([9, 2])) is None
    assert SMOTE().refusal(torch.tensor([1, 1])) is None
    with pytest.raises(RequestError, match="at least two"):
        SMOTE().resample(samples((9, 1)), Digits(), 0)


# --------------------------------------------------------------------------------------------------------- augmentation


def still(**options: float) -> Transforming:
    return replace(Transforming(degrees=0.0, shift=0.0, brightness=0.0, contrast=0.0), **options)


def streams(count: int, seed: int = 0) -> Streams:
    return Streams.of(torch.arange(count), seed)


def test_no_transform_is_the_identity() -> None:
    images = torch.rand(4, 3, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(still().transform(images, False, streams(4)), images)


def test_mirroring_is_left_to_right_half_of_the_time_and_only_where_allowed() -> None:
    images = torch.rand(200, 3, 6, 6, dtype=torch.float64)
    found = still().transform(images, True, streams(200))
    same = torch.isclose(found, images).flatten(1).all(1)
    mirrored = torch.isclose(found, images.flip(3)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 60 < int(same.sum()) < 140
    offline = replace(Augmentation(), degrees=0.0, shift=0.0, brightness=0.0, contrast=0.0)
    given_ = samples((20, 20))
    upright, _ = offline.resample(given_, Digits(), 0)
    assert torch.equal(upright.images[40:], given_.images)
    flipped, _ = offline.resample(given_, CIFAR10(), 0)
    assert not torch.equal(flipped.images[40:], given_.images)


@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_rotation_agrees_with_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms.functional import InterpolationMode, rotate

    images = torch.nn.functional.interpolate(smooth(6), shape, mode="bilinear")
    found = still(degrees=30.0).transform(images, False, streams(6))
    degrees = streams(6).uniform("transform", (5,), -1, 1, torch.float64)[:, 0] * 30
    assert float(degrees.abs().max()) > 10
    for image, turned, angle in zip(images, found, degrees.tolist(), strict=True):
        wanted = rotate(image, angle, InterpolationMode.BILINEAR, fill=[0.5])
        inside = (slice(None), slice(8, -8), slice(8, -8))
        assert (turned - wanted)[inside].abs().max() < 1e-3
        assert (turned - image)[inside].abs().max() > 1e-2 or abs(angle) < 3


def test_shift_moves_by_the_share_of_the_side() -> None:
    images = torch.zeros(64, 1, 40, 40, dtype=torch.float64)
    images[:, :, 18:22, 18:22] = 1
    found = still(shift=0.25).transform(images, False, streams(64))
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), images.sum(dim=(1, 2, 3)))
    pixels = torch.arange(40, dtype=torch.float64)
    moved = torch.stack([(found.sum(dim=(1, d)) * pixels).sum(1) / 16 - 19.5 for d in (2, 3)])
    drawn = streams(64).uniform("transform", (5,), -1, 1, torch.float64)[:, 1:3].T
    torch.testing.assert_close(moved, -10 * drawn, atol=1e-6, rtol=0)


def test_contrast_and_brightness_follow_their_formulas() -> None:
    images = 0.4 + 0.2 * torch.rand(32, 3, 8, 8, dtype=torch.float64)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    drawn = streams(32).uniform("transform", (5,), -1, 1, torch.float64)[:, 3:, None, None, None]
    contrasted = still(contrast=0.5).transform(images, False, streams(32))
    torch.testing.assert_close(contrasted, mean + (1 + 0.5 * drawn[:, 0]) * (images - mean))
    brightened = still(brightness=0.5).transform(images, False, streams(32))
    torch.testing.assert_close(brightened, images * (1 + 0.5 * drawn[:, 1]))


def test_transformed_images_stay_in_range_and_belong_to_their_sample() -> None:
    images = torch.rand(16, 3, 12, 12)
    wild = Transforming(degrees=45.0, shift=0.5, brightness=1.0, contrast=1.0)
    found = wild.transform(images, True, streams(16))
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    index = torch.tensor([11, 3, 4])
    torch.testing.assert_close(wild.transform(images[index], True, streams(16)[index]), found[index])


def test_copies_are_added_in_proportion_and_differ() -> None:
    given_ = samples((12, 3))
    found, _ = Augmentation(copies=3).resample(given_, Digits(), 0)
    assert counted(found) == [48, 12]
    assert torch.equal(found.images[:15], given_.images)
    copies = found.images[15:].reshape(3, 15, -1)
    assert torch.equal(found.labels[15:].reshape(3, 15), given_.labels.expand(3, 15))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (copies[one] != copies[other]).any(dim=1).all()


def test_augmentation_and_sampler_are_both_in_turn() -> None:
    given_ = samples((20, 5, 3))
    both, _ = AugmentationSampler().resample(given_, Digits(), 4)
    enlarged, _ = Augmentation().resample(given_, Digits(), 4)
    in_turn, _ = Sampler().resample(enlarged, Digits(), 4)
    assert torch.equal(both.images, in_turn.images)
    assert len(both) == 56


def test_online_augmentation_differs_between_epochs_and_samples_only() -> None:
    images = torch.rand(1, 3, 16, 16).expand(8, 3, 16, 16)
    balancer: Balancer = OnlineAugmentation()
    one, again, other = (balancer.augment(images, CIFAR10(), streams(8, epoch)) for epoch in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one != other).flatten(1).any(1).all()
    assert len({tuple(image.flatten().tolist()) for image in one}) == 8
    assert balancer.resample(samples((4, 2)), CIFAR10(), 0)[0].images.shape[0] == 6
