from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from archives import PUBLISHED

from robbench.core.registry import Registry
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.results.schema import CellResult
from robbench.results.verification import files_follow, verify

FOLDERS = sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []
# README shows this one; the others, a minute in all, are made anew where whole runs are tested.
SHOWN = "full-digits"
BOARDS = [
    pytest.param(folder, id=folder.name, marks=[] if folder.name == SHOWN else pytest.mark.end_to_end)
    for folder in FOLDERS
]


Board = tuple[Path, list[CellResult]]


@pytest.fixture(scope="module", params=BOARDS)
def board(request: pytest.FixtureRequest) -> Board:
    """A published board and its cells, which are read once."""
    return request.param, read_archive(request.param)


def test_every_number_of_a_published_board_follows_from_its_records(board: Board, tmp_path: Path) -> None:
    folder, cells = board
    pictures = read_pictures(folder)
    if pictures:
        shutil.copytree(folder / "figures", tmp_path / "figures")
    made = {path.name: path.read_bytes() for path in write_board(tmp_path, read_note(folder), cells, pictures)}
    files_follow({name: (folder / name).read_bytes() for name in made}, made, folder.name)


def test_every_figure_of_a_published_record_follows_from_its_outcome(board: Board) -> None:
    folder, cells = board
    assert verify(cells, Registry(installed=False), lambda key: f"{folder}, {key}") == frozenset()


def test_no_published_cell_failed(board: Board) -> None:
    assert {record.status for record, _ in board[1]} <= {"done", "unsupported"}


def test_honest_rows_carry_no_flag() -> None:
    flags: dict[str, dict[str, str]] = {}
    for record, _ in read_archive(PUBLISHED / SHOWN):
        flags.setdefault(record.spec.model.label, {}).update(record.flags)
    for model in ("cross-entropy · no defense", "cross-entropy · fgm", "angular · fgm"):
        assert flags[model] == {}
