"""Compressing images as JPEG before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.attacks._jpeg import jpeg
from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import Preprocessing


@register_defense("jpeg")
@dataclass(frozen=True)
class Jpeg(Preprocessing):
    """JPEG compression at inference time (Dziugaite et al., 2016; Guo et al., 2018), by a real codec (Pillow's).

    Images are rounded to 8 bits; color is stored at half the resolution, as codecs do unless told otherwise.

    Attributes:
        quality: From 1, the smallest file, to 100.
    """

    quality: Annotated[int, Field(ge=1, le=100)] = 75

    def change(self, images: Tensor) -> Tensor:
        """The images encoded and decoded."""
        return jpeg(images, self.quality)
