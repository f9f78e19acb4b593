"""Where results live: a directory of trained models and cells, addressed by key. Needs no torch.

Every file is written to a temporary name, flushed to disk and renamed; the file that says that an entry is complete
(``model.json``, ``record.json``) comes last. A reader sees a whole entry or none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robbench.core.atomic_io import check_writable, write_atomically
from robbench.core.errors import RequestError, StoreError
from robbench.results.schema import BoardNote, Outcome, Record, dumps

EMBEDDINGS = "embeddings.npz"
EXAMPLES = "examples.npz"
HISTORY = "history.csv"


@dataclass(frozen=True)
class Store:
    """A directory of results.

    Attributes:
        root: The directory, made when something is written to it.
    """

    root: Path

    def check(self) -> None:
        """See, without writing anything, whether the directory can be written to.

        Raises:
            RequestError: If it cannot.
        """
        check_writable(self.root, "--out")

    @contextlib.contextmanager
    def lock(self, exclusive: bool = False) -> Iterator[None]:
        """Hold the store while it is written to; runs share it, removing needs it alone.

        Raises:
            RequestError: If somebody holds it in a way that excludes this, or it cannot be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a")
        except OSError as error:
            raise RequestError(f'"{self.root}" cannot be written to: {error.strerror or error}', "--out") from None
        with file:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except OSError:
                raise RequestError(f'"{self.root}" is in use by another robbench; try again later', "--out") from None
            yield

    def model_dir(self, key: str) -> Path:
        """Where a trained model lies."""
        return self.root / "models" / key

    def cell_dir(self, key: str) -> Path:
        """Where a cell lies."""
        return self.root / "cells" / key

    def has_model(self, key: str) -> bool:
        """Whether a model is trained."""
        folder = self.model_dir(key)
        return (folder / "model.json").is_file() and (folder / "weights.safetensors").is_file()

    def model_info(self, key: str) -> dict[str, Any]:
        """What is recorded of a trained model.

        Raises:
            StoreError: If it cannot be read.
        """
        path = self.model_dir(key) / "model.json"
        try:
            info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}; remove {path.parent} and run again") from error
        return info

    def write_cell(self, record: Record, outcome: Outcome | None, extras: Mapping[str, bytes] | None = None) -> Record:
        """Keep a cell, its record last.

        Args:
            record: The record.
            outcome: What it rests on, or None where nothing came of it.
            extras: Contents of further files by name, which only figures use.

        Returns:
            The record with the hash of the outcome.
        """
        folder = self.cell_dir(record.key)
        if outcome is not None:
            data = outcome.to_bytes()
            record = record.model_copy(update={"outcome_sha256": hashlib.sha256(data).hexdigest()})
            write_atomically(folder / "outcome.npz", data)
        for name, content in (extras or {}).items():
            write_atomically(folder / name, content)
        write_atomically(folder / "record.json", record.to_json())
        return record

    def record(self, key: str) -> Record | None:
        """A cell's record, or None where there is none.

        Raises:
            StoreError: If there is one and it cannot be read.
        """
        path = self.cell_dir(key) / "record.json"
        try:
            return Record.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            reason = str(error).split("\n")[0]
            raise StoreError(f"cannot read {path}: {reason}; remove {path.parent} and run again") from error

    def outcome(self, record: Record) -> Outcome | None:
        """The outcome that a record rests on, or None where it has none.

        Raises:
            StoreError: If it is missing or is not the one that the record was made from.
        """
        if record.outcome_sha256 is None:
            return None
        path = self.cell_dir(record.key) / "outcome.npz"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; remove {path.parent} and run again") from error
        if hashlib.sha256(data).hexdigest() != record.outcome_sha256:
            raise StoreError(f"{path} is not what its record was made from; remove {path.parent} and run again")
        return Outcome.from_bytes(data)

    def finished(self, key: str, embedded: bool = False) -> bool:
        """Whether a cell needs no more work; a failed one does.

        Args:
            key: The cell's address.
            embedded: Whether embeddings are asked for as well.
        """
        record = self.record(key)
        if record is None or record.status == "failed":
            return False
        return not embedded or record.status != "done" or (self.cell_dir(key) / EMBEDDINGS).is_file()

    def note_board(
        self, board: str, note: BoardNote, cells: Sequence[str], models: Sequence[str], exhibit: str | None = None
    ) -> None:
        """Note which cells a board is made of, so that it can be made again from the store alone.

        Args:
            board: The board's name.
            note: What it says that does not follow from them.
            cells: Keys of the cells, in order.
            models: Keys of their models.
            exhibit: Name of the sample images of its data set under ``exhibits``.
        """
        parts = {"cells": list(cells), "models": list(models), "exhibit": exhibit}
        write_atomically(self.root / "boards" / f"{board}.json", dumps(note.model_dump(mode="json") | parts))

    def boards(self) -> dict[str, dict[str, Any]]:
        """What ``note_board`` noted, by board.

        Raises:
            StoreError: If a note cannot be read.
        """
        return {path.stem: self._note(path) for path in sorted((self.root / "boards").glob("*.json"))}

    def note_request(self, key: str, grid: str, boards: Mapping[str, Sequence[str]]) -> None:
        """Note that a request was carried out.

        Args:
            key: Identifies what it rested on; see ``robbench.planning.inputs``.
            grid: Name of its grid.
            boards: Keys of its cells, by board.
        """
        write_atomically(self.root / "requests" / f"{key}.json", dumps({"grid": grid, "boards": boards}))

    def forget_request(self, key: str) -> None:
        """Take the note of a request back, while its cells are worked on."""
        (self.root / "requests" / f"{key}.json").unlink(missing_ok=True)

    def request(self, key: str) -> dict[str, Any] | None:
        """What ``note_request`` noted, or None.

        Raises:
            StoreError: If the note cannot be read.
        """
        path = self.root / "requests" / f"{key}.json"
        return self._note(path) if path.is_file() else None

    def _note(self, path: Path) -> dict[str, Any]:
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(note, dict):
                raise ValueError("it is not what robbench writes")
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}; remove it and run its grid again") from error
        return note

    def keys(self, kind: str) -> list[str]:
        """The keys under ``models`` or ``cells``, finished or not."""
        folder = self.root / kind
        return sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []

    def size(self, kind: str, key: str) -> int:
        """Bytes of one entry."""
        return sum(path.stat().st_size for path in (self.root / kind / key).rglob("*") if path.is_file())

    def remove(self, kind: str, key: str) -> None:
        """Remove one entry."""
        shutil.rmtree(self.root / kind / key, ignore_errors=True)
