"""What a published board rests on, in two files: ``records.jsonl``, a record a line, and ``outcomes.npz``."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robbench.errors import StoreError
from robbench.files import write_atomically
from robbench.leaderboards.table import Cell
from robbench.records import Outcome, Record


def write_archive(folder: Path, cells: Sequence[Cell]) -> None:
    """Keep cells beside their board.

    Args:
        folder: The board's directory.
        cells: Records with their outcomes, None unless done.

    Raises:
        StoreError: If a file cannot be written.
    """
    buffer = io.BytesIO()
    outcomes: dict[str, Any] = {
        record.key: np.frombuffer(outcome.to_bytes(), np.uint8) for record, outcome in cells if outcome is not None
    }
    np.savez_compressed(buffer, **outcomes)
    write_atomically(folder / "outcomes.npz", buffer.getvalue())
    lines = [record.model_dump_json(exclude_defaults=True, exclude={"schema_version"}) for record, _ in cells]
    head = f'{{"schema_version":{cells[0][0].schema_version},' if cells else ""
    write_atomically(folder / "records.jsonl", "".join(f"{head}{line[1:]}\n" for line in lines))


def read_archive(folder: Path) -> list[Cell]:
    """The cells that ``write_archive`` kept.

    Raises:
        StoreError: If a file is missing, or an outcome is not the one that its record was made from.
    """
    try:
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        records = [Record.from_json(line) for line in lines]
        with np.load(folder / "outcomes.npz", allow_pickle=False) as arrays:
            outcomes = {key: arrays[key].tobytes() for key in arrays.files}
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read what the board in {folder} rests on: {error}") from error
    cells: list[Cell] = []
    for record in records:
        data = outcomes.get(record.key)
        found = None if data is None else hashlib.sha256(data).hexdigest()
        if found != record.outcome_sha256:
            raise StoreError(f"{folder}: the outcome of {record.key} is not what its record was made from")
        cells.append((record, None if data is None else Outcome.from_bytes(data)))
    return cells
