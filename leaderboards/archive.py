"""Published boards, and what they rest on in two files: ``records.jsonl``, a record a line, and ``outcomes.npz``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.leaderboards.figure_manifest import Picture, read_manifest
from robbench.leaderboards.table import Cell
from robbench.results.schema import BoardNote, Outcome, Record

NOTE = "board.json"
RECORDS = "records.jsonl"
OUTCOMES = "outcomes.npz"

_KEY = re.compile(r"[0-9a-f]{20}")
_FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def write_archive(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Keep cells beside their board.

    Args:
        folder: The board's directory.
        cells: Records with their outcomes, None unless done.

    Returns:
        The files.

    Raises:
        StoreError: If a file cannot be written.
    """
    outcomes: dict[str, Any] = {}
    lines = []
    for record, outcome in cells:
        if outcome is not None:
            data = outcome.to_bytes()
            outcomes[record.key] = np.frombuffer(data, np.uint8)
            # Another version of the library may have written the same arrays as other bytes.
            record = record.model_copy(update={"outcome_sha256": hashlib.sha256(data).hexdigest()})
        line = record.model_dump_json(exclude_defaults=True, exclude={"schema_version"})
        lines.append(f'{{"schema_version":{record.schema_version},{line[1:]}\n')
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outcomes)
    write_atomically(folder / OUTCOMES, buffer.getvalue())
    write_atomically(folder / RECORDS, "".join(lines))
    return [folder / OUTCOMES, folder / RECORDS]


def read_archive(folder: Path) -> list[Cell]:
    """The cells that ``write_archive`` kept, whoever did.

    Raises:
        StoreError: In one line, if a file is missing or is not what it should be, a cell is there twice, an outcome has
            no record, or an outcome is not the one that its record was made from.
    """
    with _reading(folder / RECORDS):
        # Not splitlines, which divides at characters that may stand inside of JSON texts.
        lines = (folder / RECORDS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    path = folder / OUTCOMES
    with _reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        outcomes = {key: arrays[key].tobytes() for key in arrays.files}
    cells: dict[str, Cell] = {}
    for number, line in enumerate(lines, start=1):
        with _reading(f"{folder / RECORDS}, line {number}"):
            record = Record.from_json(line)
            if not _KEY.fullmatch(record.key):
                raise ValueError(f"{record.key!r} is not the key of a cell")
            if record.key in cells:
                raise ValueError(f"cell {record.key} is there twice")
            cells[record.key] = record, _outcome(record, outcomes.pop(record.key, None))
    if outcomes:
        raise StoreError(f"{folder / OUTCOMES}: {len(outcomes)} outcomes have no record")
    return list(cells.values())


def _outcome(record: Record, data: bytes | None) -> Outcome | None:
    found = None if data is None else hashlib.sha256(data).hexdigest()
    if found != record.outcome_sha256:
        raise ValueError(f"the outcome of {record.key} is not what its record was made from")
    return None if data is None else Outcome.from_bytes(data)


def read_note(folder: Path) -> BoardNote:
    """What a published board says that does not follow from its records.

    Raises:
        StoreError: In one line, if it cannot be read.
    """
    with _reading(folder / NOTE):
        return BoardNote.model_validate_json((folder / NOTE).read_text(encoding="utf-8"))


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """The figures of a board, with names that are safe to use as those of files.

    Raises:
        StoreError: In one line, if their list cannot be read, names a file that is not there, or one elsewhere.
    """
    with _reading(folder / "figures"):
        pictures = read_manifest(folder)
        for picture in pictures:
            if not isinstance(picture.name, str) or not _FILE_STEM.fullmatch(picture.name):
                raise ValueError(f"{picture.name!r} is not the name of a figure")
        return pictures


@contextlib.contextmanager
def _reading(place: object) -> Iterator[None]:
    """What others hand over can break in any way; whichever it is, it is told in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        plain = "".join(letter if letter.isprintable() else "?" for letter in reason)
        raise StoreError(f"cannot read {place}: {plain}") from error
