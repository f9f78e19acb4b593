"""Arrays in npz files of whoever wrote them: every size is looked at before anything of that size is allocated."""

from __future__ import annotations

import math
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_CONTENTS = 2**22
"""Bytes of a list of contents: some ten thousand arrays."""
_DICTIONARY = 2**26
"""Bytes that unpacking may look back, for which memory is allocated."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
_KINDS = "biufU"
_PIECE = 2**14
_END, _END_SIZE, _COMMENT = b"PK\x05\x06", 22, 2**16
_LARGE_END, _LARGE_END_SIZE = b"PK\x06\x07", 20
_HEADER_SIZE = 30


def read_npz(file: BinaryIO, limit: int) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, not to be written to.

    Args:
        file: The file.
        limit: Bytes that its arrays may have, all together.

    Raises:
        ValueError: If it is none, its arrays have more bytes, or something in it is no plain array of what it says.
        OSError: If it cannot be read.
    """
    _check_contents(file)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > limit:
                raise ValueError(f"it unfolds to {total:,} bytes, more than {limit:,}")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"it has the array {name} twice")
                try:
                    arrays[name] = _array(archive, member, file)
                except ValueError as error:
                    raise ValueError(f"the array {name}: {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is no npz: {error}") from error
    return arrays


def _check_contents(file: BinaryIO) -> None:
    """Look at how long the list of contents is, which ``zipfile`` reads whole."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _COMMENT - _END_SIZE - _LARGE_END_SIZE))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_SIZE:
        raise ValueError("it is no npz")
    listed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if listed > _CONTENTS or tail[max(0, at - _LARGE_END_SIZE) : at].startswith(_LARGE_END):
        raise ValueError(f"its list of contents has more than {_CONTENTS:,} bytes")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: BinaryIO) -> NDArray[Any]:
    if member.compress_type not in _COMPRESSIONS:
        raise ValueError("it is compressed in an unknown way")
    if member.compress_type == zipfile.ZIP_LZMA:
        _check_dictionary(member, file)
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format {version} is unknown")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(stream)
        if dtype.hasobject or dtype.kind not in _KINDS:
            raise ValueError(f"it holds {dtype}, which is no plain number or text")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > member.file_size:
            raise ValueError(f"it says that it has the shape {shape}, and holds {member.file_size:,} bytes at most")
        data = bytearray()
        # In pieces: all of an array that is larger than it says would be unpacked otherwise.
        while len(data) < size and (piece := stream.read(min(_PIECE, size - len(data)))):
            data += piece
        if len(data) < size or stream.read(1):
            raise ValueError(f"it has another number of bytes than the {size:,} of its shape {shape}")
    array: NDArray[Any] = np.ndarray(shape, dtype, bytes(data), order="F" if by_column else "C")
    return array


def _check_dictionary(member: zipfile.ZipInfo, file: BinaryIO) -> None:
    """Look at the size of LZMA's dictionary, which is allocated at once."""
    back = file.tell()
    file.seek(member.header_offset)
    header = file.read(_HEADER_SIZE)
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    properties = file.read(9)  # version, length, then a byte of settings and the dictionary's size
    file.seek(back)
    if int.from_bytes(properties[5:9], "little") > _DICTIONARY:
        raise ValueError(f"to unpack it takes a dictionary of more than {_DICTIONARY:,} bytes")
