"""Every way to store an image gives the pixels that were meant."""

from __future__ import annotations

import struct
import zlib
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


def tiff(values: bytes, bits: int, *, white_is_zero: bool = False, signed: bool = False) -> bytes:
    """A gray TIFF of one strip (TIFF 6.0, section 4)."""
    tags = {256: SIZE, 257: SIZE, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: SIZE}
    tags |= {279: len(values), 339: 1 + signed}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(values)) + values + struct.pack("<H", len(tags)) + entries + bytes(4)


def twelve(values: NDArray[np.integer]) -> bytes:
    """Pairs of 12-bit numbers in three bytes each."""
    pairs = values.astype(int).reshape(-1, 2)
    return b"".join(((int(one) << 12) | int(other)).to_bytes(3, "big") for one, other in pairs)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16, 32])
def test_every_number_of_bits_is_scaled_and_white_may_be_zero(bits: int, white_is_zero: bool, tmp_path: Path) -> None:
    if bits == 12 and white_is_zero:
        pytest.skip("Pillow does not read it")
    stored = 255 - LEVELS if white_is_zero else LEVELS
    values = {8: stored.tobytes(), 12: twelve(stored * np.uint16(16) + 7), 16: (stored * np.uint16(257)).tobytes()}
    floats = (stored / np.float32(255)).astype("<f4")
    if bits == 32:
        (tmp_path / "x.tif").write_bytes(
            tiff(floats.tobytes(), 32, white_is_zero=white_is_zero).replace(
                struct.pack("<HHIHH", 339, 3, 1, 1, 0), struct.pack("<HHIHH", 339, 3, 1, 3, 0)
            )
        )
    else:
        (tmp_path / "x.tif").write_bytes(tiff(values[bits], bits, white_is_zero=white_is_zero))
    np.testing.assert_array_equal(decode_image(tmp_path / "x.tif", SIZE)[0], LEVELS)


@pytest.mark.parametrize("bits", [8, 16])
def test_integers_with_a_sign_are_refused_by_name(bits: int, tmp_path: Path) -> None:
    values = (np.arange(SIZE * SIZE) - 32).astype(f"<i{bits // 8}")
    (tmp_path / "x.tif").write_bytes(tiff(values.tobytes(), bits, signed=True))
    with pytest.raises(RequestError, match=r"x\.tif cannot be read as an image .*with a sign"):
        decode_image(tmp_path / "x.tif", SIZE)


@pytest.mark.parametrize(("channels", "color"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_sixteen_bits_of_png_keep_their_upper_half(channels: int, color: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, channels)).astype(">u2")
    (tmp_path / "x.png").write_bytes(png(values, color))
    upper = (values >> 8).astype(np.uint8)
    expected = upper[..., :3] if channels > 2 else np.repeat(upper[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decode_image(tmp_path / "x.png", SIZE).transpose(1, 2, 0), expected)


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", found)


def png(values: NDArray[np.generic], color: int, notes: bytes = b"") -> bytes:
    """A PNG (ISO 15948) of a color type, with chunks between its header and its pixels."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8 * values.itemsize, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    parts = chunk(b"IHDR", header) + notes + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


UPSIDE_DOWN = chunk(b"eXIf", b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 4, 0, 0))


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"tEXt", b"a\0b", checksum=1),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"x\0\0no stream"),
        chunk(b"zTXt", b"a\0\1no such method"),
        chunk(b"gAMA", b""),
        chunk(b"pHYs", b"1"),
    ],
    ids=["checksum", "long", "profile", "method", "empty", "short"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_note_that_cannot_be_read_does_not_cost_the_image(note: bytes, turned: bool, tmp_path: Path) -> None:
    gray = LEVELS[..., None]
    (tmp_path / "x.png").write_bytes(png(gray, 0, UPSIDE_DOWN * turned + note))
    plain = np.asarray(decode_image(tmp_path / "x.png", SIZE)[0])
    np.testing.assert_array_equal(plain, LEVELS[::-1] if turned else LEVELS)


def test_pixels_that_are_damaged_do(tmp_path: Path) -> None:
    content = png(LEVELS[..., None], 0, chunk(b"tEXt", b"a\0b", checksum=1))
    (tmp_path / "x.png").write_bytes(content[:-30])
    with pytest.raises(RequestError, match=r"x\.png cannot be read as an image"):
        decode_image(tmp_path / "x.png", SIZE)


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
