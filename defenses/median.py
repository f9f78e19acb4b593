"""Median filtering images before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import DifferentiablePreprocessing


@register_defense("median")
@dataclass(frozen=True)
class Median(DifferentiablePreprocessing):
    """A median filter at inference time (Xu et al., "Feature squeezing", 2018, section IV.B).

    The window of an even size lies one pixel further up and left, and of two middle values the upper one counts, as in
    SciPy. Beyond the edge lie copies of it. The gradient is that of the pixel that was chosen.

    Attributes:
        size: Side of the window in pixels.
    """

    size: Annotated[int, Field(ge=2)] = 3

    def change(self, images: Tensor) -> Tensor:
        """The filtered images, channel by channel."""
        before, after = self.size // 2, (self.size - 1) // 2
        padded = functional.pad(images, (before, after, before, after), mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return windows.kthvalue(self.size**2 // 2 + 1, dim=4).values
