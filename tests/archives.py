"""Published boards, and archives as earlier versions wrote them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from board_cells import Cell

from robbench.leaderboards.archive import OUTCOMES, RECORDS

PUBLISHED = Path(__file__).resolve().parents[1] / "leaderboards" / "published"


def write_format_1(folder: Path, cells: Sequence[Cell]) -> None:
    """A whole record in each line, and the file of each outcome as an array of bytes under the key of its cell."""
    outcomes: dict[str, Any] = {}
    lines = []
    for record, outcome in cells:
        if outcome is not None:
            data = outcome.to_bytes()
            outcomes[record.key] = np.frombuffer(data, np.uint8)
            record = record.model_copy(update={"outcome_sha256": hashlib.sha256(data).hexdigest()})
        line = record.model_dump_json(exclude_defaults=True, exclude={"schema_version"})
        lines.append(f'{{"schema_version":{record.schema_version},{line[1:]}\n')
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outcomes)
    (folder / OUTCOMES).write_bytes(buffer.getvalue())
    (folder / RECORDS).write_text("".join(lines), encoding="utf-8")
