"""Published boards, and what they rest on in two files: ``records.jsonl``, a record a line, and ``outcomes.npz``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.evaluation.audit import marked
from robbench.leaderboards.figure_manifest import FILE_STEM, Picture, read_manifest
from robbench.leaderboards.outcome_columns import pack_outcomes, read_arrays, unpack_outcomes
from robbench.leaderboards.record_lines import FORMAT, read_lines, record_lines
from robbench.results.schema import SCHEMA, BoardNote, CellResult, ConditionKind, Outcome, Record

NOTE = "board.json"
RECORDS = "records.jsonl"
OUTCOMES = "outcomes.npz"

_KEY = re.compile(r"[0-9a-f]{20}")


def write_archive(folder: Path, cells: Sequence[CellResult]) -> list[Path]:
    """Keep cells beside their board.

    Args:
        folder: The board's directory.
        cells: Records with their outcomes, None unless done.

    Returns:
        The files.

    Raises:
        StoreError: If a file cannot be written.
        ValueError: If an outcome is not of the condition and the classes of its record.
    """
    for record, outcome in cells:
        if outcome is not None and (outcome.kind, outcome.num_classes) != _form(record):
            raise ValueError(f"the outcome of {record.key} is of another condition or of other classes than its record")
    write_atomically(folder / OUTCOMES, pack_outcomes([outcome for _, outcome in cells if outcome is not None]))
    write_atomically(folder / RECORDS, record_lines(cells))
    return [folder / OUTCOMES, folder / RECORDS]


def _form(record: Record) -> tuple[ConditionKind, int]:
    return record.spec.condition.kind, len(record.spec.dataset.class_names)


def read_archive(folder: Path) -> list[CellResult]:
    """The cells that ``write_archive`` kept, of this version or an earlier one, whoever did.

    Those of an earlier one are audited anew: it did not look for all that is flagged now.

    Raises:
        StoreError: In one line, if a file is missing or is not what it should be, a cell is there twice, an outcome has
            no record, or an outcome is not the one that its record was made from.
    """
    with _reading(folder / RECORDS):
        # Not splitlines, which divides at characters that may stand inside of JSON texts.
        lines = (folder / RECORDS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    with _reading(f"{folder / RECORDS}, line 1"):
        read = _columns if _is_headed(lines[0]) else _cell_by_cell
    cells = list(read(folder, lines))
    with _reading(folder / RECORDS):
        return marked(cells) if cells and json.loads(lines[0])["schema_version"] < SCHEMA else cells


def _is_headed(line: str) -> bool:
    head = json.loads(line)
    known = head.get("archive", 1) if isinstance(head, dict) else 1
    if known not in (1, FORMAT):
        raise ValueError(f"archive format {known!r} is not known to this robbench (it knows up to {FORMAT})")
    return bool(known == FORMAT)


def _columns(folder: Path, lines: Sequence[str]) -> Iterator[CellResult]:
    with _reading(folder / RECORDS):
        entries = list(read_lines(lines))
        keys: set[str] = set()
        for entry in entries:
            _add_key(keys, entry.record.key)
    with _reading(folder / OUTCOMES):
        arrays = read_arrays(folder / OUTCOMES)
        forms = [_form(entry.record) for entry in entries if entry.outcome is not None]
        outcomes = unpack_outcomes(arrays, forms)
        found = [None if entry.outcome is None else next(outcomes) for entry in entries]
    for entry, outcome in zip(entries, found, strict=True):
        with _reading(f"{folder / RECORDS}, line {entry.number}"):
            record = entry.completed(outcome)
        yield record, outcome


def _cell_by_cell(folder: Path, lines: Sequence[str]) -> Iterator[CellResult]:
    """Format 1: a whole record in each line, and the file of each outcome as an array of bytes under its key."""
    with _reading(folder / OUTCOMES):
        outcomes = {key: array.tobytes() for key, array in read_arrays(folder / OUTCOMES).items()}
    keys: set[str] = set()
    for number, line in enumerate(lines, start=1):
        with _reading(f"{folder / RECORDS}, line {number}"):
            record = Record.from_json(line)
            _add_key(keys, record.key)
            data = outcomes.pop(record.key, None)
            if (None if data is None else hashlib.sha256(data).hexdigest()) != record.outcome_sha256:
                raise ValueError(f"the outcome of {record.key} is not what its record was made from")
            outcome = None if data is None else Outcome.from_bytes(data)
            if outcome is not None:
                # Another version of the library may have written the same arrays as other bytes.
                record = record.model_copy(update={"outcome_sha256": outcome.sha256()})
        yield record, outcome
    if outcomes:
        raise StoreError(f"{folder / OUTCOMES}: {len(outcomes)} outcomes have no record")


def _add_key(keys: set[str], key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a cell")
    if key in keys:
        raise ValueError(f"cell {key} is there twice")
    keys.add(key)


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
            if not isinstance(picture.name, str) or not re.fullmatch(FILE_STEM, picture.name):
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
