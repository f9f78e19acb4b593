"""Which images of a data set are used for what: selected by class, counted out, split. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from robbench.core.errors import RequestError, did_you_mean
from robbench.data import lazy_images
from robbench.data.cache import image_digests
from robbench.data.lazy_images import LazyImages
from robbench.results.schema import Ints

if TYPE_CHECKING:
    from robbench.core.batches import StoredSamples
    from robbench.core.contracts import Samples
    from robbench.data.dataset import Dataset, DecodedImages

TEST_ALONE = (0.0, 0.0, 1.0)
"""As ``split``: nothing is trained."""


@dataclass(frozen=True)
class Splits:
    """Which images of a data set are used for what. Train, validation and test have none in common.

    Attributes:
        train, validation, test: Positions among the decoded images, int64, rising.
        gallery: The training images that nearest-neighbor models refer to, as many of each class; rising positions.
        labels: Class of every decoded image among the chosen ones, -1 where it is none of them, int64.
        class_names: Names of the chosen classes, in the order of their indices.
        crossing: How many test images are equal, to the last bit, to a training or validation image.
    """

    train: Ints
    validation: Ints
    test: Ints
    gallery: Ints
    labels: Ints
    class_names: tuple[str, ...]
    crossing: int

    def counts(self, index: Ints) -> tuple[int, ...]:
        """Images per chosen class at some positions."""
        return tuple(np.bincount(self.labels[index], minlength=len(self.class_names)).tolist())

    def take(self, decoded: DecodedImages, index: Ints) -> Samples:
        """The images at some positions, which become their ids."""
        import torch

        from robbench.core.contracts import Samples

        images = torch.from_numpy(np.array(decoded.images[index]))
        return Samples(images, torch.from_numpy(self.labels[index]), torch.from_numpy(index.copy()))

    def stored(self, decoded: DecodedImages, index: Ints) -> StoredSamples:
        """The same, decoded when they are asked for where they are too large for memory."""
        import torch

        from robbench.core.batches import LazySamples

        images = decoded.images
        if not isinstance(images, LazyImages) or len(index) * math.prod(images.shape[1:]) <= lazy_images.RESIDENT:
            return self.take(decoded, index)
        return LazySamples(images, torch.from_numpy(self.labels[index]), torch.from_numpy(index.copy()))


def split(dataset: Dataset, decoded: DecodedImages) -> Splits:
    """Divide the chosen classes of a data set into train, validation and test, stratified.

    Every class is shuffled on its own, by ``split_seed`` and its index there, and laid out as test, validation,
    train. ``split`` gives the sizes; where the publisher set test images aside they come first, and the first two
    shares divide the rest. Smaller training sets are the end of that layout, so that the test and validation images of
    a data set and of its imbalanced variant are the same. ``train_counts`` and ``test_counts`` may go beyond what
    ``split`` gives; validation then keeps what they leave, at most what ``split`` gives. ``train_shares`` take as many
    images as these proportions allow, rounded down, after ``train_fraction`` was taken.

    Raises:
        RequestError: If options contradict each other or a class has too few images: at least one image of each class
            must be left to train, to validate and to test on.
    """
    chosen = _chosen(dataset, decoded)
    if dataset.split == TEST_ALONE:
        return _test_alone(dataset, decoded, chosen)
    _check_options(dataset, len(chosen))
    names = tuple(decoded.class_names[c] for c in chosen)
    official = bool(decoded.is_test.any()) and not dataset.pooled
    layouts = [_layout(dataset, decoded, c, official) for c in chosen]
    train_sizes = _train_sizes(dataset, names, np.array([sizes[0] for _, sizes in layouts]))
    test_sizes = dataset.test_counts or tuple(sizes[2] for _, sizes in layouts)

    train, validation, test = [], [], []
    for name, (order, sizes), r, t in zip(names, layouts, train_sizes, test_sizes, strict=True):
        end, tested = len(order), sizes[2]
        free = tested if official else t  # where images begin that may be trained or validated on
        if official and t > tested:
            _refuse(f'class "{name}": test_counts asks for {t} test images and there are {tested}')
        if r + 1 > end - free:
            left = end - free
            _refuse(
                f'class "{name}": {r} training images are asked for and {max(left, 0)} are left beside {t} test '
                "images, one of them to validate on"
            )
        v = min(sizes[1], end - free - r)
        start = min(max(tested, t), end - r - v)
        test.append(order[:t])
        validation.append(order[start : start + v])
        train.append(order[end - r :])
    reference = min(dataset.gallery, *train_sizes)
    return Splits(
        train=_joined(train),
        validation=_joined(validation),
        test=_joined(test),
        gallery=_joined([part[len(part) - reference :] for part in train]),
        labels=_relabeled(decoded, chosen),
        class_names=names,
        crossing=_crossing(decoded, _joined(train + validation), _joined(test)),
    )


def _test_alone(dataset: Dataset, decoded: DecodedImages, chosen: tuple[int, ...]) -> Splits:
    """Every image is for testing, or those that the publisher set aside; classes may be empty."""
    usual = {field.name: field.default for field in fields(dataset)}
    for option in ("train_counts", "train_shares", "train_fraction", "test_counts"):
        if getattr(dataset, option) != usual[option]:
            _refuse(f"split = {dataset.split} leaves nothing to train on; leave {option} out")
    labels = _relabeled(decoded, chosen)
    official = decoded.is_test.any() and not dataset.pooled
    test = np.flatnonzero((labels >= 0) & (decoded.is_test if official else True))
    if not len(test):
        _refuse("no image of these classes is left to test on")
    none = np.zeros(0, dtype=np.int64)
    return Splits(
        train=none,
        validation=none,
        test=test,
        gallery=none,
        labels=labels,
        class_names=tuple(decoded.class_names[c] for c in chosen),
        crossing=0,
    )


def _relabeled(decoded: DecodedImages, chosen: tuple[int, ...]) -> Ints:
    indices = np.full(len(decoded.class_names), -1, dtype=np.int64)
    indices[list(chosen)] = np.arange(len(chosen))
    return indices[decoded.labels]


def _joined(parts: list[Ints]) -> Ints:
    return np.sort(np.concatenate(parts))


def _refuse(message: str) -> NoReturn:
    raise RequestError(f"the data set cannot be split so: {message}")


def _chosen(dataset: Dataset, decoded: DecodedImages) -> tuple[int, ...]:
    """Indices of the classes that are kept, among all classes."""
    lists = (dataset.train_counts, dataset.train_shares, dataset.test_counts)
    for name in dataset.classes:
        if name not in decoded.class_names:
            _refuse(f'there is no class "{name}"; {did_you_mean(name, decoded.class_names)}')
    if len(set(dataset.classes)) < len(dataset.classes):
        _refuse(f"classes names a class twice: {', '.join(dataset.classes)}")
    chosen = tuple(decoded.class_names.index(name) for name in dataset.classes)
    if not chosen:
        chosen = tuple(range(max(map(len, lists)) or len(decoded.class_names)))
    if len(chosen) < 2 or len(chosen) > len(decoded.class_names):
        _refuse(f"{len(chosen)} classes are chosen of {len(decoded.class_names)}; at least two are needed")
    return chosen


def _check_options(dataset: Dataset, num_classes: int) -> None:
    for option in ("train_counts", "train_shares", "test_counts"):
        values: tuple[float, ...] = getattr(dataset, option)
        if values and len(values) != num_classes:
            _refuse(f"{option} has {len(values)} entries for {num_classes} classes")
        if any(value <= 0 for value in values):
            _refuse(f"{option} = {values} must be positive")
    if any(share > 1 for share in dataset.train_shares):
        _refuse(f"train_shares = {dataset.train_shares} must lie in (0, 1]")
    if dataset.train_counts and (dataset.train_shares or dataset.train_fraction != 1):
        _refuse("train_counts are exact numbers and cannot be combined with train_shares or train_fraction")
    if not 0 < dataset.train_fraction <= 1:
        _refuse(f"train_fraction = {dataset.train_fraction} must lie in (0, 1]")
    if any(share <= 0 for share in dataset.split) or not math.isclose(sum(dataset.split), 1, abs_tol=1e-6):
        _refuse(
            f"split = {dataset.split} must be three positive shares that sum to 1: train, validation, test; or 0, 0, 1 "
            "where nothing is trained"
        )
    for option, least in (("train_least", 1), ("gallery", 1), ("split_seed", 0)):
        if getattr(dataset, option) < least:
            _refuse(f"{option} = {getattr(dataset, option)} must be at least {least}")


def _layout(dataset: Dataset, decoded: DecodedImages, label: int, official: bool) -> tuple[Ints, tuple[int, int, int]]:
    """A class shuffled and laid out as test, validation, train; and the sizes of train, validation and test."""
    name = decoded.class_names[label]
    rng = np.random.default_rng([dataset.split_seed, label])
    members = rng.permutation(np.flatnonzero(decoded.labels == label))
    if not official:
        if len(members) < 3:
            _refuse(f'class "{name}" has only {len(members)} images; it needs one each to train, validate and test on')
        train, validation, test = apportion(len(members), dataset.split)
        return members, (int(train), int(validation), int(test))
    aside = decoded.is_test[members]
    test, rest = int(aside.sum()), int((~aside).sum())
    if test < 1 or rest < 2:
        _refuse(
            f'class "{name}" has only {rest} training and {test} test images; it needs two and one, since one of the '
            "training images is kept to validate on"
        )
    train, validation = apportion(rest, dataset.split[:2])
    return np.concatenate([members[aside], members[~aside]]), (int(train), int(validation), test)


def _train_sizes(dataset: Dataset, names: tuple[str, ...], have: Ints) -> tuple[int, ...]:
    if dataset.train_counts:
        return dataset.train_counts
    if dataset.train_fraction < 1:
        have = apportion(max(len(have), round(dataset.train_fraction * int(have.sum()))), have)
    if dataset.train_shares:
        shares = np.array(dataset.train_shares)
        most = (have * shares.max() / shares).min()
        for name, count in zip(names, have, strict=True):
            if count < dataset.train_least:
                _refuse(
                    f'class "{name}" has only {count} training images, fewer than train_least = {dataset.train_least}'
                )
        # The small number keeps a product such as 98 / 0.3 * 0.3 from falling below the integer that it is.
        have = np.maximum(np.floor(shares * most + 1e-9).astype(np.int64), dataset.train_least)
    return tuple(have.tolist())


def _crossing(decoded: DecodedImages, seen: Ints, test: Ints) -> int:
    if decoded.duplicates == 0:
        return 0
    known = set(image_digests(decoded.images, seen))
    return sum(row in known for row in image_digests(decoded.images, test))


def apportion(total: int, weights: ArrayLike) -> Ints:
    """Divide a number in given proportions: largest remainders, none gets nothing as long as there is one for each.

    Args:
        total: What is divided.
        weights: Positive proportions, shape ``(K,)``.

    Returns:
        Integers that sum to ``total``, int64, shape ``(K,)``.
    """
    shares = np.asarray(weights, dtype=np.float64)
    quota = total * shares / shares.sum()
    counts: Ints = np.floor(quota).astype(np.int64)
    counts[np.argsort(counts - quota, kind="stable")[: total - int(counts.sum())]] += 1
    if total >= len(counts):
        for empty in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[empty] = 1
    return counts


def stratified(labels: Ints, size: int, seed: int) -> Ints:
    """A subsample with the proportions of the whole.

    Args:
        labels: Class indices, shape ``(N,)``.
        size: How many to draw, at least 1; where there are no more, all are taken. From as many as there are classes
            on, every class is there.
        seed: The same seed gives the same subsample.

    Returns:
        Positions in ``labels``, int64, rising.
    """
    if size >= len(labels):
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    drawn = [
        np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, apportion(size, counts), strict=True)
    ]
    return np.sort(np.concatenate(drawn))
