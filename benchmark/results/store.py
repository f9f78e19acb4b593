"""Where results live: a directory of trained models and cells, addressed by key. Needs no torch.

Every file is written to a temporary name and renamed; the file that says that an entry is complete (``model.json``,
``record.json``) comes last. A reader sees a whole entry or none. What took long is flushed to disk, and so are records;
what a power cut takes of a cell's other files shows by their hashes.

Every file is verified when it is read: JSON and archives by their seals, the others by a hash in sealed JSON. What is
damaged is not there for a run, which makes it again; for everybody else it is an error that names the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robbench.core.atomic_io import check_writable
from robbench.core.errors import Damaged, RequestError, StoreError
from robbench.core.lease import Busy, leased, shared
from robbench.core.sealed import MISSING, hash_of, verify_hash
from robbench.results.notes import Notes
from robbench.results.schema import SCHEMA, Outcome, Record

CHECKPOINT = "checkpoint.pt"
DIVERGED = "diverged.json"
EMBEDDINGS = "embeddings.npz"
EXAMPLES = "examples.npz"
HISTORY = "history.csv"
IMAGES = "images.npz"
MODEL = "model.json"
OUTCOME = "outcome.npz"
RECORD = "record.json"
WEIGHTS = "weights.safetensors"


def is_store(folder: Path) -> bool:
    """Whether somebody keeps results there, or only decoded images so far."""
    # Not by ``Path.is_file``, which fails in a folder that must not be looked into.
    return os.path.isfile(folder / ".lock") or any(folder.glob("data/*/meta.json"))


def check_sources(store: Store, sources: Iterable[Path], option: str = "--store-from") -> None:
    """See that other stores are there and can be read.

    Raises:
        RequestError: If one of them is none, or is the own one.
    """
    for place in sources:
        try:
            names = {"cells", "models"}.intersection(os.listdir(place))
            for name in names:
                os.listdir(place / name)
        except OSError as error:
            raise RequestError(f'"{place}" cannot be read: {error.strerror or error}', option) from None
        if place.resolve() == store.root.resolve():
            raise RequestError(f'"{place}" is the store that is written to; name another', option)
        if not names:
            raise RequestError(f'"{place}" is no store: it has no cells', option)


@dataclass(frozen=True)
class Store(Notes):
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

    def lease(self, kind: str, key: str, most: float = math.inf) -> AbstractContextManager[None]:
        """Be the only one to write an entry; whoever is at it is waited for, so look again afterwards.

        Args:
            kind: ``models``, ``cells`` or ``leaderboards``.
            key: Its address.
            most: Seconds to wait.

        Raises:
            Busy: If somebody is at it for longer.
            StoreError: If there can be no lease.
        """
        return leased(self.root / kind / f".{key}.lock", most)

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
            diverged = self.read(folder / DIVERGED)
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
        hashes = {"weights_sha256": hash_of(weights), "history_sha256": hash_of(history.encode())}
        self.put(folder / WEIGHTS, weights)
        self.put(folder / HISTORY, history)
        self.write(folder / MODEL, {**info, "key": key, **hashes})

    def write_diverged(self, key: str, history: str) -> None:
        """Keep how a training went that came to no model."""
        self.put(self.model_dir(key) / HISTORY, history)
        self.write(self.model_dir(key) / DIVERGED, {"key": key, "history_sha256": hash_of(history.encode())})

    def diverged(self, key: str) -> bool:
        """Whether a training came to no model."""
        return not self.has_model(key) and (self.model_dir(key) / DIVERGED).is_file()

    def check_embeddings(self, key: str) -> bool:
        """Whether there are embeddings of a model's training images.

        Raises:
            Damaged: If they are not what was written.
        """
        return self.read_archive(self.model_dir(key) / EMBEDDINGS) is not None

    def drop_damaged(self, path: Path) -> None:
        """Remove an archive that is not what was written; nobody may be there to write it again."""
        try:
            self.read_archive(path)
        except Damaged:
            self.drop(path)

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
            extras: Contents of archives by name, which no figure of a board rests on. Images of an earlier outcome go,
                and so does what is damaged.

        Returns:
            The record with the hash of the outcome.
        """
        folder = self.cell_dir(record.key)
        if outcome is not None:
            for name in {EXAMPLES, EMBEDDINGS, IMAGES}.difference(extras or {}):
                self.drop_damaged(folder / name) if name != IMAGES else self.drop(folder / name)
            data = outcome.to_bytes()
            record = record.model_copy(update={"outcome_sha256": hash_of(data)})
            self.put(folder / OUTCOME, data, flush=False)
        for name, content in (extras or {}).items():
            self.write_archive(folder / name, content, flush=False)
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

    def done(self, key: str) -> Record | None:
        """A cell's record if it is done and its outcome is whole; what figures are drawn from may lack."""
        with contextlib.suppress(Damaged):
            record = self.record(key)
            if record is not None and self.outcome(record) is not None:
                return record
        return None

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
        info = self.read(path.with_name(MODEL)) or self.read(path.with_name(DIVERGED)) or {}
        return self.read_hashed(path, info.get("history_sha256"))

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


def _check_key(path: Path, found: object, key: str) -> None:
    if found != key:
        raise Damaged(path, f"it is of {found}")
