"""The kinds of common corruptions and their severities (Hendrycks and Dietterich, 2019)."""

from __future__ import annotations

from typing import Literal, get_args

MainKind = Literal[
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic-transform",
    "pixelate",
    "jpeg-compression",
]
ExtraKind = Literal["speckle-noise", "gaussian-blur", "spatter", "saturate"]
CorruptionKind = Literal[MainKind, ExtraKind]

MAIN: tuple[MainKind, ...] = get_args(MainKind)
"""The kinds that published means are over, in the order of the paper."""
EXTRA: tuple[ExtraKind, ...] = get_args(ExtraKind)
"""Kinds meant to be tuned on; published means leave them out."""
SEVERITIES = (1, 2, 3, 4, 5)
