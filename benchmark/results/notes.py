"""What a store notes of its boards and of the requests that it was made for. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robbench.core.errors import Damaged
from robbench.core.lease import leased
from robbench.core.sealed import CHANGED, MISSING, SealedDirectory, hash_of, verify_hash
from robbench.results.schema import BoardNote

INDEX = "index.html"
_WRITTEN = "leaderboards.json"
_BOARD_FILES = (".csv", ".html", ".json", ".md", ".png", ".svg")
_NOTED: Mapping[str, tuple[tuple[str, type], ...]] = {
    "boards": (("grid", str), ("cells", list), ("models", list)),
    "requests": (("grid", str), ("boards", dict)),
}
"""What the notes of each kind hold at least."""


@dataclass(frozen=True)
class Notes(SealedDirectory):
    """The notes of a store: which cells its boards are made of, what their files are, which requests are done.

    Attributes:
        root: The store's directory.
    """

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
        note = _well_formed("boards", self._board(board), self.read(self._board(board)))
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

    def note_files(self, boards: Sequence[str], made_of: str | None = None) -> None:
        """Note what the files of some boards are, and the list of all, so that ``check_files`` can tell.

        Args:
            boards: Their names.
            made_of: Hash of all that they follow from, empty where that is not known; where it is None, what was noted
                of that stays.
        """
        folder = self.root / "leaderboards"
        with leased(folder / ".files.lock"):
            known = self.read_new(self.root / _WRITTEN) or {}
            kept = {name: sha for name, sha in known.items() if name.partition("/")[0] not in boards}
            origins = {f"{board}/": known.get(f"{board}/") if made_of is None else made_of for board in boards}
            kept |= {name: origin for name, origin in origins.items() if origin}
            paths = [path for board in boards for path in (folder / board).rglob("[!.]*")] + [folder / INDEX]
            fresh = {
                path.relative_to(folder).as_posix(): hash_of(path.read_bytes()) for path in paths if path.is_file()
            }
            self.write(self.root / _WRITTEN, kept | fresh)

    def board_files(self, part: str) -> dict[Path, str]:
        """The noted files of a board, or of the list of boards ``index.html``, with their hashes."""
        known = self.read_new(self.root / _WRITTEN) or {}
        own = (name for name in known if name.partition("/")[0] == part and not name.endswith("/"))
        return {self.root / "leaderboards" / name: known[name] for name in own}

    def made_of(self, board: str) -> str | None:
        """What ``note_files`` noted of where a board comes from, or None."""
        origin: str | None = (self.read_new(self.root / _WRITTEN) or {}).get(f"{board}/")
        return origin

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
        found = {path.stem: _well_formed("requests", path, self.read(path)) for path in paths}
        return {key: note for key, note in found.items() if note is not None}

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

    def _board(self, board: str) -> Path:
        return self.root / "boards" / f"{board}.json"

    def _request(self, key: str) -> Path:
        return self.root / "requests" / f"{key}.json"


def _well_formed(kind: str, path: Path, note: dict[str, Any] | None) -> dict[str, Any] | None:
    """A note, or None where there is none.

    Raises:
        Damaged: If it lacks what notes of its kind hold.
    """
    if note is not None and not all(isinstance(note.get(name), type_) for name, type_ in _NOTED[kind]):
        raise Damaged(path, CHANGED)
    return note
