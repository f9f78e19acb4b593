"""Where results live: a directory of trained models and cells, addressed by key. Needs no torch.

Every file is written to a temporary name, flushed to disk and renamed; the file that says that an entry is complete
(``model.json``, ``record.json``) comes last. A reader sees a whole entry or none.

Every file is verified when it is read: JSON and archives by their seals, the others by a hash in sealed JSON. What is
damaged is not there for a run, which makes it again; for everybody else it is an error that names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import check_writable
from robbench.core.errors import Damaged, RequestError, StoreError
from robbench.core.lease import Busy, leased, shared
from robbench.core.sealed import CHANGED, MISSING, SealedDirectory, verify_hash
from robbench.results.schema import SCHEMA, BoardNote, Outcome, Record

CHECKPOINT = "checkpoint.pt"
EMBEDDINGS = "embeddings.npz"
EXAMPLES = "examples.npz"
HISTORY = "history.csv"
IMAGES = "images.npz"
INDEX = "index.html"
MODEL = "model.json"
OUTCOME = "outcome.npz"
RECORD = "record.json"
WEIGHTS = "weights.safetensors"
_DIVERGED = "diverged.json"
_WRITTEN = "leaderboards.json"
_BOARD_FILES = (".csv", ".html", ".json", ".md", ".png", ".svg")
_NOTED: Mapping[str, tuple[tuple[str, type], ...]] = {
    "boards": (("grid", str), ("cells", list), ("models", list)),
    "requests": (("grid", str), ("boards", dict)),
}
"""What the notes of each kind hold at least."""


def is_store(folder: Path) -> bool:
    """Whether somebody keeps results there, or only decoded images so far."""
    return (folder / ".lock").is_file() or any(folder.glob("data/*/meta.json"))


@dataclass(frozen=True)
class Store(SealedDirectory):
    """A directory of results.

    Attributes:
        root: The directory, made when something is written to it.
    """

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
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(shared(self.root / ".lock", exclusive))
            except Busy:
                raise RequestError(f'"{self.root}" is in use by another robbench; try again later', "--out") from None
            except OSError as error:
                raise RequestError(f'"{self.root}" cannot be written to: {error.strerror or error}', "--out") from None
            yield

    def lease(self, kind: str, key: str) -> AbstractContextManager[None]:
        """Be the only one to write an entry; whoever is at it is waited for, so look again afterwards.

        Args:
            kind: ``models``, ``cells`` or ``leaderboards``.
            key: Its address.

        Raises:
            StoreError: If there can be no lease.
        """
        return leased(self.root / kind / f".{key}.lock")

    def model_dir(self, key: str) -> Path:
        """Where a trained model lies."""
        return self.root / "models" / key

    def cell_dir(self, key: str) -> Path:
        """Where a cell lies."""
        return self.root / "cells" / key

    def has_model(self, key: str) -> bool:
        """Whether a model is trained and none of its files is damaged."""
        try:
            return self.check_model(key)
        except Damaged:
            return False

    def check_model(self, key: str) -> bool:
        """Whether a model is trained; raises ``Damaged`` if a file of its training is not what was written."""
        folder = self.model_dir(key)
        info = self.read(folder / MODEL)
        if info is None:
            diverged = self.read(folder / _DIVERGED)
            if diverged is not None:
                verify_hash(folder / HISTORY, diverged["history_sha256"])
            return False
        _check_key(folder / MODEL, info.get("key"), key)
        verify_hash(folder / WEIGHTS, info.get("weights_sha256"))
        if "history_sha256" in info:
            verify_hash(folder / HISTORY, info["history_sha256"])
        return True

    def model_info(self, key: str) -> dict[str, Any]:
        """What is recorded of a trained model.

        Raises:
            Damaged: If it is missing or not what was written.
        """
        path = self.model_dir(key) / MODEL
        info = self.read(path)
        if info is None:
            raise Damaged(path, MISSING)
        _check_key(path, info.get("key"), key)
        return info

    def weights(self, key: str) -> bytes:
        """The weights of a trained model, as safetensors.

        Raises:
            Damaged: If they are missing or not what was written.
        """
        path = self.model_dir(key) / WEIGHTS
        return self.read_hashed(path, self.model_info(key).get("weights_sha256"))

    def write_model(self, key: str, info: Mapping[str, Any], weights: bytes, history: str) -> None:
        """Keep a trained model: its weights as safetensors, its history as CSV, what is recorded of it last."""
        folder = self.model_dir(key)
        hashes = {"weights_sha256": _sha256(weights), "history_sha256": _sha256(history.encode())}
        self.put(folder / WEIGHTS, weights)
        self.put(folder / HISTORY, history)
        self.write(folder / MODEL, {**info, "key": key, **hashes})

    def write_diverged(self, key: str, history: str) -> None:
        """Keep how a training went that came to no model."""
        self.put(self.model_dir(key) / HISTORY, history)
        self.write(self.model_dir(key) / _DIVERGED, {"key": key, "history_sha256": _sha256(history.encode())})

    def check_embeddings(self, key: str) -> bool:
        """Whether there are embeddings of a model's training images.

        Raises:
            Damaged: If they are not what was written.
        """
        return self.read_archive(self.model_dir(key) / EMBEDDINGS) is not None

    def checkpoint(self, key: str) -> bytes | None:
        """What ``write_checkpoint`` kept of an unfinished training, or None.

        Raises:
            Damaged: If it is not what was written.
        """
        return self.read_archive(self.model_dir(key) / CHECKPOINT)

    def write_checkpoint(self, key: str, data: bytes | None) -> None:
        """Keep the state of an unfinished training, a zip archive; None removes it."""
        path = self.model_dir(key) / CHECKPOINT
        if data is None:
            self.drop(path)
        else:
            self.write_archive(path, data)

    def write_cell(self, record: Record, outcome: Outcome | None, extras: Mapping[str, bytes] | None = None) -> Record:
        """Keep a cell, its record last.

        Args:
            record: The record.
            outcome: What it rests on, or None where nothing came of it.
            extras: Contents of archives by name, which no figure of a board rests on. Images of an earlier outcome go.

        Returns:
            The record with the hash of the outcome.
        """
        folder = self.cell_dir(record.key)
        if outcome is not None:
            if IMAGES not in (extras or {}):
                self.drop(folder / IMAGES)
            data = outcome.to_bytes()
            record = record.model_copy(update={"outcome_sha256": _sha256(data)})
            self.put(folder / OUTCOME, data)
        for name, content in (extras or {}).items():
            self.write_archive(folder / name, content)
        self.write(folder / RECORD, record.model_dump(mode="json"))
        return record

    def replace_record(self, before: Record, after: Record) -> None:
        """Write a record that was read, unless somebody has done the cell again since."""
        if after != before:
            with self.lease("cells", before.key):
                if self.record(before.key) == before:
                    self.write_cell(after, None)

    def record(self, key: str) -> Record | None:
        """A cell's record, or None where there is none.

        Raises:
            Damaged: If there is one and it is not what was written.
            StoreError: If a newer robbench wrote it.
        """
        path = self.cell_dir(key) / RECORD
        value, sealed = self.read_sealed(path)
        if value is None:
            return None
        try:
            record = Record.from_data(value)
        except ValueError as error:
            reason = str(error).split("\n")[0]
            if sealed:
                raise StoreError(f"cannot read {path}: {reason}; use the robbench that wrote it") from error
            raise Damaged(path, reason) from error
        _check_key(path, record.key, key)
        return record

    def outcome(self, record: Record) -> Outcome | None:
        """The outcome that a record rests on, or None where it has none.

        Raises:
            Damaged: If it is missing or is not the one that the record was made from.
        """
        if record.outcome_sha256 is None:
            return None
        return Outcome.from_bytes(self.read_hashed(self.cell_dir(record.key) / OUTCOME, record.outcome_sha256))

    def finished(self, key: str, keeps: Collection[str] = ()) -> bool:
        """Whether a cell needs no more work; a failed or damaged one does.

        Args:
            key: The cell's address.
            keeps: Names of the archives that have to be beside its outcome, of a cell that is done.
        """
        try:
            return self.check_cell(key, keeps)
        except Damaged:
            return False

    def check_cell(self, key: str, keeps: Collection[str] = ()) -> bool:
        """Whether a cell needs no more work; see ``finished``.

        Raises:
            Damaged: If one of its files is not what was written.
        """
        folder = self.cell_dir(key)
        facts, sealed = self.read_sealed(folder / RECORD)
        if facts is None:
            return False
        if not sealed or facts["schema_version"] != SCHEMA:
            record = self.record(key)
            facts = record.model_dump() if record else {}
        _check_key(folder / RECORD, facts.get("key"), key)
        if facts["status"] == "failed":
            return False
        if facts["outcome_sha256"] is not None:
            verify_hash(folder / OUTCOME, facts["outcome_sha256"])
        # All images of a cell can be large; only whoever asks for them needs to know that they are whole.
        names = {EXAMPLES, EMBEDDINGS, *keeps}
        found = {name for name in names if self.read_archive(folder / name) is not None}
        return facts["status"] != "done" or found.issuperset(keeps)

    def content(self, path: Path) -> bytes:
        """A file that figures are drawn from: an archive, or the history of a training.

        Raises:
            Damaged: If it is not what was written.
        """
        if path.name != HISTORY:
            archive = self.read_archive(path)
            if archive is None:
                raise Damaged(path, MISSING)
            return archive
        info = self.read(path.with_name(MODEL)) or self.read(path.with_name(_DIVERGED)) or {}
        return self.read_hashed(path, info.get("history_sha256"))

    def note_board(
        self,
        board: str,
        note: BoardNote,
        cells: Sequence[str],
        models: Sequence[str],
        exhibit: str | None = None,
        names: Mapping[str, Any] | None = None,
    ) -> None:
        """Note which cells a board is made of, so that it can be made again from the store alone.

        Args:
            board: The board's name.
            note: What it says that does not follow from them.
            cells: Keys of the cells, in order.
            models: Keys of their models.
            exhibit: Name of the sample images of its data set under ``exhibits``.
            names: What it calls them; see ``robbench.results.board_cells``. None for the names in the records.
        """
        parts: dict[str, Any] = {"cells": list(cells), "models": list(models), "exhibit": exhibit}
        if names is not None:
            parts["names"] = names
        self.write(self._board(board), note.model_dump(mode="json") | parts)

    def exhibit(self, name: str) -> Path:
        """Where sample images of a data set lie."""
        return self.root / "exhibits" / f"{name}.npz"

    def boards(self) -> dict[str, dict[str, Any]]:
        """What ``note_board`` noted, by board.

        Raises:
            Damaged: If a note is not what was written.
        """
        return {board: self.board(board) for board in self.board_names()}

    def board_names(self) -> list[str]:
        """The boards that were noted."""
        return sorted(path.stem for path in (self.root / "boards").glob("[!.]*.json"))

    def board(self, board: str) -> dict[str, Any]:
        """What ``note_board`` noted of a board.

        Raises:
            Damaged: If it is missing or not what was written.
        """
        note = self._note("boards", self._board(board))
        if note is None:
            raise Damaged(self._board(board), MISSING)
        return note

    def forget_board(self, board: str) -> None:
        """Take the note of a board back, the requests that named it, and its files; its cells stay."""
        for key, request in self.requests().items():
            if board in request["boards"]:
                self.forget_request(key)
        self.drop(self._board(board))
        shutil.rmtree(self.root / "leaderboards" / board, ignore_errors=True)

    def note_files(self, boards: Sequence[str]) -> None:
        """Note what the files of some boards are, and the list of all, so that ``check_files`` can tell."""
        folder = self.root / "leaderboards"
        with self.lease("leaderboards", "files"):
            known = self.read_new(self.root / _WRITTEN) or {}
            kept = {name: sha for name, sha in known.items() if name.partition("/")[0] not in boards}
            paths = [path for board in boards for path in (folder / board).rglob("[!.]*")] + [folder / INDEX]
            fresh = {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in paths if path.is_file()}
            self.write(self.root / _WRITTEN, kept | fresh)

    def board_files(self, part: str) -> dict[Path, str]:
        """The noted files of a board, or of the list of boards ``index.html``, with their hashes."""
        known = self.read_new(self.root / _WRITTEN) or {}
        own = (name for name in known if name.partition("/")[0] == part)
        return {self.root / "leaderboards" / name: known[name] for name in own}

    def make_way(self, part: str) -> None:
        """Rename directories that lie where a board's files belong, or the list of boards, as their names show."""
        place = self.root / "leaderboards" / part
        for path in [place] if part == INDEX else list(place.rglob("*.*")):
            if path.suffix in _BOARD_FILES and path.is_dir():
                self.drop(path)

    def forget_files(self) -> None:
        """Take back what was noted of all boards' files, which are believed then."""
        self.drop(self.root / _WRITTEN)

    def check_files(self, part: str) -> bool:
        """Whether there are ``board_files``; raises ``Damaged`` if one is not what was written."""
        own = self.board_files(part)
        for path, sha in own.items():
            verify_hash(path, sha)
        return bool(own)

    def note_request(
        self, key: str, grid: str, boards: Mapping[str, Sequence[str]], keeps: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Note that a request was carried out.

        Args:
            key: Identifies what it rested on; see ``robbench.planning.inputs``.
            grid: Name of its grid.
            boards: Keys of its cells, by board.
            keeps: Names of the archives that its cells were asked to keep, by cell.
        """
        self.write(self._request(key), {"grid": grid, "boards": boards, "keeps": keeps or {}})

    def forget_request(self, key: str) -> None:
        """Take the note of a request back, while its cells are worked on."""
        self.drop(self._request(key))

    def requests(self) -> dict[str, dict[str, Any]]:
        """What ``note_request`` noted, by what identifies it.

        Raises:
            Damaged: If a note is not what was written.
        """
        paths = sorted((self.root / "requests").glob("[!.]*.json"))
        return {path.stem: note for path in paths if (note := self._note("requests", path)) is not None}

    def request(self, key: str) -> dict[str, Any] | None:
        """What ``note_request`` noted, or None.

        Raises:
            Damaged: If the note is not what was written.
        """
        path = self._request(key)
        return _well_formed("requests", path, self.read_new(path))

    def note_starts(self, asked: str, starts: Mapping[str, Any]) -> None:
        """Note what came of asking for weights from elsewhere, so that it is asked once.

        Args:
            asked: Identifies what asks; see ``robbench.planning.planner``.
            starts: The answers.
        """
        self.write(self._starts(asked), starts)

    def starts(self, asked: str) -> dict[str, Any]:
        """What ``note_starts`` noted; nothing where it was not asked before.

        Raises:
            Damaged: If the note is not what was written.
        """
        path = self._starts(asked)
        found = self.read(path) or {}
        if not all(isinstance(answer, list) and len(answer) == 2 for answer in found.values()):
            raise Damaged(path, CHANGED)
        return found

    def _starts(self, asked: str) -> Path:
        return self.root / "starts" / f"{asked}.json"

    def _note(self, kind: str, path: Path) -> dict[str, Any] | None:
        return _well_formed(kind, path, self.read(path))

    def keys(self, kind: str) -> list[str]:
        """The keys under ``models`` or ``cells``, finished or not."""
        folder = self.root / kind
        return sorted(item.name for item in folder.glob("[!.]*") if item.is_dir()) if folder.is_dir() else []

    def size(self, kind: str, key: str) -> int:
        """Bytes of one entry."""
        return sum(path.stat().st_size for path in (self.root / kind / key).rglob("*") if path.is_file())

    def remove(self, kind: str, key: str) -> None:
        """Remove one entry."""
        shutil.rmtree(self.root / kind / key, ignore_errors=True)

    def _board(self, board: str) -> Path:
        return self.root / "boards" / f"{board}.json"

    def _request(self, key: str) -> Path:
        return self.root / "requests" / f"{key}.json"


def _check_key(path: Path, found: object, key: str) -> None:
    if found != key:
        raise Damaged(path, f"it is of {found}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _well_formed(kind: str, path: Path, note: dict[str, Any] | None) -> dict[str, Any] | None:
    """A note, or None where there is none.

    Raises:
        Damaged: If it lacks what notes of its kind hold.
    """
    if note is not None and not all(isinstance(note.get(name), type_) for name, type_ in _NOTED[kind]):
        raise Damaged(path, CHANGED)
    return note
