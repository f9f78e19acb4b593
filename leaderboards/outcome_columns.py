"""The outcomes of many cells as a few columns: an array for each field of an outcome, all cells one behind the other.

Equal values of neighboring cells compress well so. Numbers take the smallest type that holds all of them exactly, and
the bytes of floats that fit no smaller one are sorted by significance, as signs and exponents compress and the rest
does not.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.results.schema import ConditionKind, Outcome

_LEAST_LIMIT, _RATIO = 2**25, 256
_WIDEST_EMPTY = 1000

_LENGTHS, _WIDTH = "samples", "{}.width"
_TYPES: Mapping[str, np.dtype[Any]] = {name: np.dtype(spec.dtype) for name, spec in Outcome.arrays().items()}
_LATER = {name for name, spec in Outcome.arrays().items() if spec.since >= 4}
"""Columns that files of earlier versions lack, and those of outcomes that have nothing to say in them."""
_SMALLER = ("u1", "u2", "u4", "f4")


def pack_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Outcomes as an npz of columns, the same bytes for the same outcomes.

    Raises:
        ValueError: If an array is not of the type that outcomes declare, or not one entry per sample.
    """
    columns = {_LENGTHS: _narrowed(np.array([len(outcome) for outcome in outcomes], dtype=np.int64))}
    written = {name for outcome in outcomes for name in outcome.written()}
    for name, dtype in _TYPES.items():
        if name not in written and name in _LATER:
            continue
        parts = [np.asarray(getattr(outcome, name)) for outcome in outcomes]
        for outcome, part in zip(outcomes, parts, strict=True):
            if part.dtype != dtype or part.ndim not in (1, 2) or len(part) != len(outcome):
                raise ValueError(f"the array {name} of an outcome is {part.dtype} of shape {part.shape}")
        widths = [part.shape[1] if part.ndim == 2 else -1 for part in parts]
        if any(width != -1 for width in widths):
            columns[_WIDTH.format(name)] = _narrowed(np.array(widths, dtype=np.int64))
        columns[name] = _narrowed(np.concatenate([np.zeros(0, dtype), *(part.ravel() for part in parts)]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, column in columns.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, column, allow_pickle=False)
            # Without a date of its own, a member has the earliest that there is.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_LZMA
            file.writestr(info, member.getvalue())
    return buffer.getvalue()


def unpack_outcomes(
    arrays: Mapping[str, NDArray[Any]], cells: Sequence[tuple[ConditionKind, int]], limit: int | None = None
) -> Iterator[Outcome]:
    """The outcomes that ``pack_outcomes`` packed, bit for bit.

    Args:
        arrays: The arrays of the file.
        cells: Kind of the condition and number of classes of each outcome.
        limit: Bytes that the outcomes may have, all together; any number where it is None.

    Raises:
        ValueError: If the columns do not fit each other, are of another number of outcomes, or exceed the limit.
    """
    missing = sorted({_LENGTHS, *_TYPES} - _LATER - arrays.keys())
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    lengths = _widened(arrays[_LENGTHS], np.dtype(np.int64)).tolist()
    if len(lengths) != len(cells):
        raise ValueError(f"there are {len(lengths)} outcomes for {len(cells)} records")
    present = {name: dtype for name, dtype in _TYPES.items() if name in arrays}
    total = sum(math.prod(arrays[name].shape[-1:]) * dtype.itemsize for name, dtype in present.items())
    if limit is not None and total > limit:
        raise ValueError(f"its outcomes take up to {total:,} bytes, more than {limit:,}")
    parts = {name: _parts(arrays, name, dtype, lengths) for name, dtype in present.items()}
    for place, (kind, num_classes) in enumerate(cells):
        values: dict[str, Any] = {name: found[place] for name, found in parts.items()}
        yield Outcome.of(num_classes, kind, **values)


def memory_limit(size: int) -> int:
    """Bytes of memory that the arrays in a file of others may take, by the file's size.

    Outcomes take 12 to 20 times as much as their file; a small file of many equal ones takes more.
    """
    return max(_LEAST_LIMIT, _RATIO * size)


def _parts(arrays: Mapping[str, NDArray[Any]], name: str, dtype: np.dtype[Any], lengths: list[int]) -> list[Any]:
    """A column divided into the arrays of single cells."""
    width = _WIDTH.format(name)
    widths = _widened(arrays[width], np.dtype(np.int64)).tolist() if width in arrays else [-1] * len(lengths)
    column = _widened(arrays[name], dtype)
    shapes = [(length,) if wide == -1 else (length, wide) for length, wide in zip(lengths, widths, strict=True)]
    if any(side < 0 for shape in shapes for side in shape):
        raise ValueError(f"the column {name} has sizes below 0")
    if any(wide > max(_WIDEST_EMPTY, len(column)) for wide in widths):
        raise ValueError(f"the column {name} is wider than it is long")
    ends = np.cumsum([np.prod(shape, dtype=np.int64) for shape in shapes], dtype=np.int64).tolist()
    if (ends[-1] if ends else 0) != len(column):
        raise ValueError(f"the column {name} has {len(column)} entries, not {ends[-1] if ends else 0}")
    starts = [0, *ends[:-1]]
    return [column[start:end].reshape(shape) for start, end, shape in zip(starts, ends, shapes, strict=False)]


def _narrowed(column: NDArray[Any]) -> NDArray[Any]:
    """The values in the smallest type that gives them back exactly."""
    if column.dtype.kind == "i" and len(column):
        smallest = np.result_type(np.min_scalar_type(column.min()), np.min_scalar_type(column.max()))
        return column.astype(smallest) if np.can_cast(smallest, column.dtype, "safe") else column
    if column.dtype.kind == "f":
        for smaller in _SMALLER:
            with np.errstate(all="ignore"):
                found = column.astype(smaller)
            if found.astype(column.dtype).tobytes() == column.tobytes():
                return found
        return np.ascontiguousarray(column.view(np.uint8).reshape(len(column), -1).T)
    return column


def _widened(stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """What ``_narrowed`` made smaller."""
    if stored.dtype == np.uint8 and stored.ndim == 2 and len(stored) == dtype.itemsize:
        return np.ascontiguousarray(stored.T).reshape(-1).view(dtype)
    if stored.ndim != 1 or not np.can_cast(stored.dtype, dtype, "safe"):
        raise ValueError(f"a column of {dtype} is stored as {stored.dtype} of shape {stored.shape}")
    return stored.astype(dtype)
