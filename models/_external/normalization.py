"""How images in [0, 1] are normalized before a network sees them: declared by name or by numbers, never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robbench.core.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class Normalization:
    """``(images - mean) / std``, per channel; one number stands for all channels.

    Attributes:
        mean: What is subtracted.
        std: What the difference is divided by.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def fits(self, channels: int) -> bool:
        """Whether it suits images of so many channels."""
        return {len(self.mean), len(self.std)} <= {1, channels}

    def wide(self, channels: int) -> Normalization:
        """The same with a number for each channel."""
        mean, std = (values * channels if len(values) == 1 else values for values in (self.mean, self.std))
        return Normalization(mean, std)


NONE = Normalization()
PRESETS: dict[str, Normalization] = {
    "none": NONE,
    "half": Normalization((0.5,), (0.5,)),
    "bytes": Normalization((0.0,), (1 / 255,)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-mean-std": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": Normalization((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "gtsrb": Normalization((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "tiny-imagenet": Normalization((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "mnist": Normalization((0.1307,), (0.3081,)),
    "fashion-mnist": Normalization((0.2860,), (0.3530,)),
    "kmnist": Normalization((0.1918,), (0.3483,)),
    "emnist": Normalization((0.1751,), (0.3332,)),
}
"""Normalizations that are commonly published with networks. ``half`` maps to [-1, 1], ``bytes`` to [0, 255];
``cifar10-mean-std`` divides by the mean of the images' standard deviations, as much code for CIFAR-10 does."""
MODEL = "model"
"""The name that stands for the model's own metadata."""
_COMMON = ("none", "half", "bytes", "imagenet")


def declared(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], metadata: Normalization | None, channels: int
) -> Normalization:
    """The normalization that is asked for.

    Args:
        name: A preset, ``model`` for that of the metadata, or empty for the metadata where there are any.
        mean: Numbers in place of a name.
        std: Numbers in place of a name.
        metadata: What the model's own metadata say, or None.
        channels: Channels of the images.

    Raises:
        RequestError: If there is none of that name, it does not suit the images, or it is declared twice.
    """
    if name and (mean or std):
        raise RequestError(f'both the normalization "{name}" and a mean or std are given; leave out one')
    if mean or std:
        chosen, what = Normalization(tuple(mean) or NONE.mean, tuple(std) or NONE.std), "mean and std"
    elif name == MODEL:
        if metadata is None:
            raise RequestError('the model has no metadata on its normalization; pass mean and std, or a preset: "none"')
        chosen, what = metadata, "the normalization of its metadata"
    elif name:
        if name not in PRESETS:
            raise RequestError(f'there is no normalization "{name}"; {did_you_mean(name, (*PRESETS, MODEL))}')
        chosen, what = PRESETS[name], f'the normalization "{name}"'
    else:
        chosen, what = metadata or NONE, "the normalization of its metadata"
    if not chosen.fits(channels):
        raise RequestError(
            f"{what} has {max(len(chosen.mean), len(chosen.std))} channels, the images have {channels}; "
            "pass a mean and a std of one number each, or of one per channel"
        )
    return chosen


def plausible(dataset: str, channels: int) -> dict[str, Normalization]:
    """The presets that a network for a data set may have been trained with.

    Args:
        dataset: Name of the data set; presets of that name are among them.
        channels: Channels of the images.
    """
    letters = re.sub(r"[^a-z0-9]", "", dataset.lower())

    def meant(name: str) -> bool:
        word = name.removesuffix("-mean-std").replace("-", "")
        return name in _COMMON or re.search(rf"{word}(?!\d)", letters) is not None

    return {name: one for name, one in PRESETS.items() if meant(name) and one.fits(channels)}
