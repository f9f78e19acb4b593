"""Decoding image files of any format that Pillow reads: exactly, upright, in color, or refused by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.core.safe_text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile


def decode_image(path: str | Path, size: int) -> NDArray[np.uint8]:
    """An image file in color, its shorter side scaled to ``size`` and the middle of the longer one kept.

    Gray images become color by repetition, transparency is dropped, 16 bits are reduced to 8, floating-point numbers in
    [0, 1] become 0 to 255, the first frame of several is taken, and a camera's note about how it was held is obeyed.

    Returns:
        uint8, shape ``(3, size, size)``.

    Raises:
        RequestError: If it is no image, damaged, truncated, or its numbers have no known range.
    """
    return pixels(read_image(path, str(path)).image, size)


def pixels(image: Image, size: int) -> NDArray[np.uint8]:
    """An image as an array, shape ``(3, size, size)``; see ``square``."""
    return np.asarray(square(image, size)).transpose(2, 0, 1)


class DecodedImage(NamedTuple):
    """What an image file holds.

    Attributes:
        image: Upright and in color, 8 bits each.
        gray: Whether it is stored in gray.
        several: Whether the file holds others behind it: frames, pages, previews.
    """

    image: Image
    gray: bool
    several: bool


class Header(NamedTuple):
    """What an image file says of its image before it is decoded.

    Attributes:
        size: Height and width, upright.
        gray: Whether it is stored in gray.
        several: Whether the file holds others behind it.
    """

    size: tuple[int, int]
    gray: bool
    several: bool


def read_header(content: bytes, name: str) -> Header:
    """The header of an image file; that the rest is whole shows when it is decoded.

    Args:
        content: The file.
        name: What it is called in messages.

    Raises:
        RequestError: If it is no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as file:
            gray, (width, height) = file.mode.partition(";")[0] in _GRAY, file.size
            lying = _orientation(file) in _LYING
            return Header((width, height) if lying else (height, width), gray, _several(file))
    except Exception:  # where notes are damaged, pixels may not be
        image, gray, several = read_image(io.BytesIO(content), name)
        return Header((image.height, image.width), gray, several)


def read_image(source: str | Path | BinaryIO, name: str) -> DecodedImage:
    """An image upright and in color, 8 bits each; see ``decode_image``.

    Args:
        source: The file.
        name: What it is called in messages.

    Raises:
        RequestError: If it is no image, damaged, truncated, or its numbers have no known range.
    """
    try:
        return _read(source)
    except Exception as error:  # decoders raise almost anything on damaged files
        for kept in ((*_PIXELS, b"eXIf"), _PIXELS):
            with contextlib.suppress(Exception):
                return _read(io.BytesIO(_only(source, kept)))
        reason = str(error) if isinstance(source, str | Path) else one_line(error).replace(repr(source), "its bytes")
        raise RequestError(f"{name} cannot be read as an image ({reason}); replace or remove it") from error


def _read(source: str | Path | BinaryIO) -> DecodedImage:
    from PIL import Image

    with Image.open(source) as file:
        file.load()
        upright, gray = _turned(_eight_bits(file), _orientation(file)), file.mode.partition(";")[0] in _GRAY
        return DecodedImage(upright, gray, _several(file))


_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks of a PNG file that its pixels depend on."""


def _only(source: str | Path | BinaryIO, chunks: Collection[bytes]) -> bytes:
    """A PNG file without notes: one that is damaged or long does not cost the image, as it does in Pillow.

    Args:
        source: The file.
        chunks: Names of those to keep.

    Raises:
        ValueError: If it is no PNG file.
    """
    if isinstance(source, str | Path):
        content = Path(source).read_bytes()
    else:
        source.seek(0)
        content = source.read()
    if not content.startswith(_PNG):
        raise ValueError("it is no PNG file")
    kept, at = [_PNG], len(_PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] in chunks:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def square(image: Image, size: int) -> Image:
    """An image whose shorter side is scaled to ``size``, and the middle of the longer one kept."""
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    return image if image.size == (size, size) else fit(image, (size, size), Resampling.BILINEAR)


_GRAY = ("1", "L", "LA", "La", "I", "F")
_SIXTEEN = ("PNG", "PPM")
"""Formats whose numbers are of 16 bits where Pillow keeps them in 32."""
_LYING = (5, 6, 7, 8)
"""Orientations of images whose width becomes their height."""
_SIGNED = 2
"""Sample format of integers with a sign (TIFF 6.0, tag 339)."""


def _eight_bits(image: Image) -> Image:
    """The image in color, 8 bits each.

    Raises:
        ValueError: If the range of its numbers is not known.
    """
    from PIL import Image
    from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode not in ("I", "F") and _SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise ValueError("integers with a sign: save it with 8 or 16 bits without")
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # white is zero, which Pillow obeys in 8 bits alone
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN):
        bits = next(iter(tags.get(BITSPERSAMPLE, ())), 16)  # or 12
        levels = (np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        top = 255 if image.mode == "I" else 1
        if not ((values >= 0) & (values <= top)).all():
            kind = "integers of 32 bits or with a sign" if image.mode == "I" else "floating-point numbers"
            raise ValueError(f"{kind} outside 0 to {top}: save it with 8 or 16 bits")
        return Image.fromarray((abs(top * inverted - values) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    # Where transparency is given entry by entry, Pillow asks for this detour with a warning.
    by_entry = image.mode == "P" and isinstance(image.info.get("transparency"), bytes)
    return (image.convert("RGBA") if by_entry else image).convert("RGB")


def _several(image: ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # others that cannot be read do not cost the first
        return True


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a note that cannot be read does not cost the image
        return 1


def _turned(image: Image, orientation: int) -> Image:
    """The image upright (Exif 2.32, tag 0x0112)."""
    from PIL.Image import Transpose

    turns = (
        *(None, None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    turn = turns[orientation] if 0 <= orientation < len(turns) else None
    return image if turn is None else image.transpose(turn)
