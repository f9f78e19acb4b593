"""Published boards, and what they rest on in two files: ``records.jsonl``, a record a line, and ``outcomes.npz``."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import StoreError
from robbench.core.safe_text import one_line
from robbench.core.untrusted_files import open_untrusted, parse_json, read_json
from robbench.evaluation.audit import marked
from robbench.leaderboards.figure_manifest import FILE_STEM, Picture, read_manifest
from robbench.leaderboards.outcome_columns import memory_limit, pack_outcomes, unpack_outcomes
from robbench.leaderboards.record_lines import FORMAT, other_versions, read_lines, record_lines
from robbench.results.npz import read_npz
from robbench.results.schema import SCHEMA, BoardNote, CellResult, ConditionKind, Outcome, Record

NOTE = "board.json"
RECORDS = "records.jsonl"
OUTCOMES = "outcomes.npz"

_KEY = re.compile(r"[0-9a-f]{20}")
_MOST_RECORDS, _MOST_OUTCOMES, _LONGEST_LINE, _LARGEST_NOTE, _LARGEST_FIGURES = 2**28, 2**31, 2**24, 2**20, 2**28
"""Bytes that files of others may have, a line of records, the note of a board, and all of its figures."""
_PER_CLASS, _PER_PAIR = 2048, 16
"""Bytes that the figures of a class, and those of a pair of classes, take at most."""


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


def read_archive(folder: Path, rank_by: str = "") -> list[CellResult]:
    """The cells that ``write_archive`` kept, of this version or an earlier one, whoever did.

    Those of an earlier one are audited anew: it did not look for all that is flagged now. Files of others are read
    within bounds: what is unpacked takes at most 32 MiB or 256 times as much memory as the files, whichever is more.

    Args:
        folder: The board's directory.
        rank_by: The threat model that the board is to rank by, as in its note.

    Raises:
        StoreError: In one line, if a file is missing or is not what it should be, a cell is there twice, an outcome has
            no record, or an outcome is not the one that its record was made from.
    """
    with _reading(folder / RECORDS), open_untrusted(folder / RECORDS, _MOST_RECORDS) as file:
        lines = _lines(file)
        first = next(lines, "")
        with _reading(f"{folder / RECORDS}, line 1"):
            read = _columns if _is_headed(first) else _cell_by_cell
        cells = list(read(folder, itertools.chain([first], lines)))
        return marked(cells, rank_by) if cells and parse_json(first)["schema_version"] < SCHEMA else cells


def other_metrics(folder: Path) -> list[str]:
    """Built-in metrics that had other versions when the archive was written, as in ``robustness 1, here 2``.

    An archive leaves out what follows from its outcomes by them, so that its records hold what they give here. Those of
    the first format leave out nothing.

    Raises:
        StoreError: In one line, if the first line of the records cannot be read.
    """
    with _reading(folder / RECORDS), open_untrusted(folder / RECORDS, _MOST_RECORDS) as file:
        line = next(_lines(file), "")
        return other_versions(parse_json(line)) if _is_headed(line) else []


def _lines(file: BinaryIO) -> Iterator[str]:
    # Not splitlines, which divides at characters that may stand inside of JSON texts.
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"line {number}: it has more than {_LONGEST_LINE:,} bytes")
        if not line:
            return
        yield line.decode().removesuffix("\n")


def _is_headed(line: str) -> bool:
    head = parse_json(line)
    known = head.get("archive", 1) if isinstance(head, dict) else 1
    if known not in (1, FORMAT):
        raise ValueError(f"archive format {known!r} is not known to this robbench (it knows up to {FORMAT})")
    return bool(known == FORMAT)


def _columns(folder: Path, lines: Iterator[str]) -> Iterator[CellResult]:
    with _reading(folder / RECORDS):
        entries = list(read_lines(lines))
        keys: set[str] = set()
        for entry in entries:
            _add_key(keys, entry.record.key)
    arrays, limit = _arrays(folder)
    with _reading(folder / RECORDS):
        _check_classes([entry.record for entry in entries if entry.outcome is not None], limit)
    with _reading(folder / OUTCOMES):
        forms = [_form(entry.record) for entry in entries if entry.outcome is not None]
        outcomes = unpack_outcomes(arrays, forms, limit)
        found = [None if entry.outcome is None else next(outcomes) for entry in entries]
    for entry, outcome in zip(entries, found, strict=True):
        with _reading(f"{folder / RECORDS}, line {entry.number}"):
            record = entry.completed(outcome)
        yield record, outcome


def _arrays(folder: Path) -> tuple[dict[str, NDArray[Any]], int]:
    """What the file of outcomes holds, and how much memory a board of that size may take."""
    with _reading(folder / OUTCOMES), open_untrusted(folder / OUTCOMES, _MOST_OUTCOMES) as file:
        size = sum((folder / name).stat().st_size for name in (RECORDS, OUTCOMES))
        limit = memory_limit(size)
        return read_npz(file, limit), limit


def _check_classes(records: Sequence[Record], limit: int) -> None:
    """See that figures by class and confusion matrices, which follow from outcomes, stay within the limit."""
    counts = [len(record.spec.dataset.class_names) for record in records]
    needed = sum(counts) * _PER_CLASS + max(counts, default=0) ** 2 * _PER_PAIR
    if needed > limit:
        raise ValueError(
            f"the figures of {max(counts):,} classes in {len(counts):,} cells take up to {needed:,} bytes, more than "
            f"{limit:,}"
        )


def _cell_by_cell(folder: Path, lines: Iterator[str]) -> Iterator[CellResult]:
    """Format 1: a whole record in each line, and the file of each outcome as an array of bytes under its key."""
    outcomes, limit = _arrays(folder)
    keys: set[str] = set()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        with _reading(f"{folder / RECORDS}, line {number}"):
            parse_json(line)
            record = Record.from_json(line)
            _add_key(keys, record.key)
            array = outcomes.pop(record.key, None)
            data = None if array is None else array.tobytes()
            if (None if data is None else hashlib.sha256(data).hexdigest()) != record.outcome_sha256:
                raise ValueError(f"the outcome of {record.key} is not what its record was made from")
            outcome = None if data is None else Outcome.from_bytes(data)
            if outcome is not None:
                records.append(record)
                # Another version of the library may have written the same arrays as other bytes.
                record = record.model_copy(update={"outcome_sha256": outcome.sha256()})
        yield record, outcome
    with _reading(folder / RECORDS):
        _check_classes(records, limit)
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
        return BoardNote.model_validate(read_json(folder / NOTE, _LARGEST_NOTE))


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
        size = sum((folder / "figures" / f"{picture.name}.png").stat().st_size for picture in pictures)
        if size > _LARGEST_FIGURES:
            raise ValueError(f"the figures have {size:,} bytes, more than {_LARGEST_FIGURES:,}")
        return pictures


@contextlib.contextmanager
def _reading(place: object) -> Iterator[None]:
    """What others hand over can break in any way; whichever it is, it is told in one line."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"cannot read {place}: {one_line(error) or type(error).__name__}") from error
