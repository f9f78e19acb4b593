"""Images in the rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robbench.core.errors import RequestError
from robbench.core.extras import require
from robbench.core.safe_text import one_line


def stored_rows(file: Path, column: str, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """What some rows of a file hold; row groups are read one at a time.

    Args:
        file: The file.
        column: The column of images.
        places: Numbers of images, each with its row.

    Returns:
        The numbers, in the order of their row groups, each with the image's bytes.
    """
    parquet = require("pyarrow.parquet", "parquet", "the data set parquet")
    with parquet.ParquetFile(file, pre_buffer=False) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        groups: dict[int, list[tuple[int, int]]] = {}
        for number, row in places:
            groups.setdefault(int(np.searchsorted(ends, row, side="right")), []).append((int(number), int(row)))
        for group, held in groups.items():
            values = table.read_row_group(group, columns=[column]).column(column)
            for number, row in held:
                value = values[row - int(ends[group]) + sizes[group]].as_py()
                yield number, image_content(value, f"{file}#{row}")


def image_content(value: Any, place: str) -> bytes:
    """The bytes of an image, as a value of its column.

    Raises:
        RequestError: If it holds none.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        path = value.get("path") if isinstance(value, dict) else None
        where = (
            f"; it names the file {one_line(path)!r}, which is not read: put the images into the table" if path else ""
        )
        raise RequestError(f"{place} holds no image{where}")
    return content
