"""Common corruptions of images at five severities, in the style of CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor

from robbench.attacks import _corruption_blur as blur
from robbench.attacks import _corruption_digital as digital
from robbench.attacks import _corruption_noise as noise
from robbench.attacks import _corruption_weather as weather
from robbench.attacks._random_transform import RandomTransform
from robbench.core.corruption_kinds import EXTRA, MAIN, SEVERITIES, CorruptionKind
from robbench.core.registry import register_attack
from robbench.core.sample_rng import Streams

_Change: TypeAlias = Callable[..., Tensor]


def _drawn_by_nobody(change: _Change) -> _Change:
    return lambda images, rng, *sizes: change(images, *sizes)


_TABLE: Mapping[CorruptionKind, tuple[_Change, tuple[tuple[float, ...], ...]]] = {
    "gaussian-noise": (noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot-noise": (noise.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse-noise": (noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus-blur": (_drawn_by_nobody(blur.defocus_blur), ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass-blur": (blur.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion-blur": (blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": (_drawn_by_nobody(blur.zoom_blur), ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_drawn_by_nobody(digital.brightness), ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (_drawn_by_nobody(digital.contrast), ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic-transform": (
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_drawn_by_nobody(digital.pixelate), ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg-compression": (_drawn_by_nobody(digital.jpeg_compression), ((80,), (65,), (58,), (50,), (40,))),
    "speckle-noise": (noise.speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian-blur": (_drawn_by_nobody(blur.gaussian_blur), ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": (_drawn_by_nobody(digital.saturate), ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
"""The function of each kind, and its numbers at severity 1 to 5."""


@register_attack("corruption", norms=("none",), brief="Common corruptions, 19 kinds")
@dataclass(frozen=True)
class Corruption(RandomTransform):
    """A common corruption in the style of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking robustness", 2019).

    The numbers are those of CIFAR-10-C. What is drawn is seeded, works at any image size (lengths grow with the shorter
    side from 32 pixels on), and differs from the published images, so that figures are not to be put beside published
    ones. A sample's draws are the same at every severity of a kind. Costs no pass.

    Attributes:
        kind: What happens to the images.
        severity: From 1, the mildest, to 5.
    """

    kind: CorruptionKind = "gaussian-noise"
    severity: Annotated[int, Field(ge=1, le=5)] = 3

    def apply(self, images: Tensor, rng: Streams) -> Tensor:
        """Corrupted color images."""
        if not len(images):
            return images.clone()
        change, sizes = _TABLE[self.kind]
        return change(images, rng.fork(self.kind), *sizes[self.severity - 1])

    def variants(self, which: str) -> tuple[Corruption, ...]:
        """``each`` of the fifteen usual kinds, ``all`` nineteen, or this kind alone, at all ``severities``."""
        if which == "severities":
            return tuple(Corruption(self.kind, severity) for severity in SEVERITIES)
        return suite(extra=which == "all") if which in ("each", "all") else ()


def suite(extra: bool = False) -> tuple[Corruption, ...]:
    """All kinds in the order of the paper, each at severities 1 to 5.

    Args:
        extra: Whether the four kinds that published means leave out come behind the fifteen others.
    """
    kinds: tuple[CorruptionKind, ...] = (*MAIN, *EXTRA) if extra else MAIN
    return tuple(Corruption(kind, severity) for kind in kinds for severity in SEVERITIES)
