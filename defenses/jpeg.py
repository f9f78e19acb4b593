"""Compressing images as JPEG before the model sees them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from robbench.core.registry import register_defense
from robbench.defenses._preprocessing import Preprocessing

Pixels: TypeAlias = npt.NDArray[np.uint8]


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
        """The images encoded and decoded, on the CPU and one at a time, as the codec has it."""
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = np.array([self._through_codec(image) for image in pixels], dtype=np.uint8).reshape(pixels.shape)
        return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device).to(images.dtype) / 255

    def _through_codec(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file))
