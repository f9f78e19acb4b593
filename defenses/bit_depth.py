"""Rounding images to fewer bits before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import Preprocessing


@register_defense("bit-depth")
@dataclass(frozen=True)
class BitDepth(Preprocessing):
    """Quantization: values rounded to ``2 ** bits`` levels at inference time (Xu et al., "Feature squeezing", 2018).

    Attributes:
        bits: Bits per value.
    """

    bits: Annotated[int, Field(ge=1, le=8)] = 4

    def change(self, images: Tensor) -> Tensor:
        """The rounded images."""
        steps: int = 2**self.bits - 1
        return (images.detach().clamp(0, 1) * steps).round() / steps
