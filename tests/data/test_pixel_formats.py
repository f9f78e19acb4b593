"""Every way to store an image gives the pixels that were meant."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robbench.core.errors import RequestError
from robbench.data.datasets._image_decoding import decode_image

SIZE = 8
LEVELS = np.arange(0, 256, 4, dtype=np.uint8).reshape(SIZE, SIZE)


def saved(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The first channel of an image that is saved and read."""
    Image.fromarray(values).save(path)
    channel: NDArray[np.uint8] = decode_image(path, SIZE)[0]
    return channel


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("byte.tif", lambda x: x),
        ("sixteen.png", lambda x: x.astype(np.uint16) * 257),
        ("sixteen.tif", lambda x: x.astype(np.uint16) * 257),
        ("integers.tif", lambda x: x.astype(np.int32)),
        ("floats.tif", lambda x: (x / 255).astype(np.float32)),
    ],
)
def test_every_way_to_store_gray_gives_the_same_levels(
    name: str, encode: Callable[[NDArray[np.uint8]], NDArray[np.generic]], tmp_path: Path
) -> None:
    np.testing.assert_array_equal(saved(tmp_path / name, encode(LEVELS)), LEVELS)


@pytest.mark.parametrize(
    "values",
    [
        np.full((SIZE, SIZE), 256, np.int32),
        np.full((SIZE, SIZE), -1, np.int32),
        np.full((SIZE, SIZE), 1.5, np.float32),
        np.full((SIZE, SIZE), np.nan, np.float32),
        np.full((SIZE, SIZE), -np.inf, np.float32),
    ],
)
def test_numbers_of_unknown_range_are_refused_by_name(values: NDArray[np.generic], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"odd\.tif cannot be read as an image .*outside 0 to"):
        saved(tmp_path / "odd.tif", values)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F", "I", "LAB", "YCbCr"])
def test_no_mode_becomes_black(mode: str, tmp_path: Path) -> None:
    white = Image.new("RGB", (SIZE, SIZE), "white")
    if mode in ("F", "I", "I;16"):
        top = {"F": 1.0, "I": 255, "I;16": 65535}[mode]
        image = Image.fromarray(np.full((SIZE, SIZE), top, {"F": "f4", "I": "i4", "I;16": "u2"}[mode]))
    else:
        image = white.convert("L").convert(mode) if mode == "LA" else _converted(white, mode)
    image.save(tmp_path / "x.tif")
    assert decode_image(tmp_path / "x.tif", SIZE).min() > 250


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode != "LAB":
        return image.convert(mode)
    from PIL import ImageCms

    to = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    made = ImageCms.applyTransform(image, to)
    assert made is not None
    return made


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("damaged", [False, True])
def test_a_camera_s_note_is_obeyed_also_beside_one_that_cannot_be_read(
    orientation: int, damaged: bool, tmp_path: Path
) -> None:
    from PIL import ImageOps

    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:3, :2] = 255
    # Orientation, and a resolution whose denominator is 0.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    odd = struct.pack("<HHII", 0x011A, 10, 1, 38) if damaged else b""
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1 + damaged)
    exif = header + entries + odd + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    plain = Image.Exif()
    plain[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "plain.png", exif=plain)
    with Image.open(tmp_path / "plain.png") as image:
        upright = ImageOps.exif_transpose(image)
    expected = np.asarray(upright.convert("RGB"))
    np.testing.assert_array_equal(decode_image(tmp_path / "x.png", SIZE).transpose(1, 2, 0), expected)
