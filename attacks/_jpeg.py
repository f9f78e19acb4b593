"""JPEG compression by Pillow's codec."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Images rounded to 8 bits, encoded and decoded, on the CPU and one by one; not differentiable.

    Color is stored at half the resolution, the codec's default. Where there are not three channels, each is an image in
    gray.

    Args:
        images: Floats, clipped to [0, 1], shape ``(N, C, H, W)``.
        quality: From 1, the smallest file, to 100.

    Returns:
        Images of the same shape, dtype and device, channels last in memory.
    """
    from PIL import Image

    if images.shape[1] != 3:
        gray = images.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        return jpeg(gray, quality)[:, 0].reshape(images.shape)
    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(pixels, order="C")
    for number, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded[number] = Image.open(file)
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device).to(images.dtype) / 255
