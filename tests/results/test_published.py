from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from archives import PUBLISHED

from robbench.core.registry import Registry
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.results.verification import files_follow, verify

BOARDS = sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_every_number_of_a_published_board_follows_from_its_records(folder: Path, tmp_path: Path) -> None:
    cells, pictures = read_archive(folder), read_pictures(folder)
    if pictures:
        shutil.copytree(folder / "figures", tmp_path / "figures")
    made = {path.name: path.read_bytes() for path in write_board(tmp_path, read_note(folder), cells, pictures)}
    files_follow({name: (folder / name).read_bytes() for name in made}, made, folder.name)


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: folder.name)
def test_every_figure_of_a_published_record_follows_from_its_outcome(folder: Path) -> None:
    assert verify(read_archive(folder), Registry(installed=False), lambda key: f"{folder}, {key}") == frozenset()


def test_no_published_cell_failed() -> None:
    assert BOARDS
    for folder in BOARDS:
        assert {record.status for record, _ in read_archive(folder)} <= {"done", "unsupported"}


def test_honest_rows_carry_no_flag() -> None:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for folder in BOARDS:
        for record, _ in read_archive(folder):
            rows.setdefault((folder.name, record.spec.model.label), {}).update(record.flags)
    for model in ("cross-entropy · no defense", "cross-entropy · fgm", "angular · fgm"):
        assert rows["full-digits", model] == {}
