"""Published boards, written anew from their own records."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from board_cells import TOYS, model
from stores import complaint, files, finished, under_pgd

from robbench.cli.main import main
from robbench.evaluation.audit import marked
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_pictures, write_archive
from robbench.leaderboards.figure_manifest import Picture, Section, write_manifest

PICTURES = (
    Picture("samples", "images", "Samples", "What they look like.", "Images."),
    Picture("classes", "classes", "Classes", "As an earlier version said it.", "Bars."),
)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A published board as an earlier version might have left it."""
    folder = tmp_path / "published" / "toys"
    (folder / "figures").mkdir(parents=True)
    rows = (*under_pgd(model("bare", "none"), 8), *under_pgd(model("hardened", "fgm"), 30))
    cells = marked([finished(made) for made in rows])
    for picture in PICTURES:
        for suffix, content in (("png", b"\x89PNG"), ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")):
            (folder / "figures" / f"{picture.name}.{suffix}").write_bytes(content)
    write_manifest(folder, PICTURES)
    write_board(folder, TOYS, cells, PICTURES)
    write_archive(folder, cells)
    (folder / "README.md").write_text("# Written by an earlier version\n", encoding="utf-8")
    return folder


def rewrite(folder: Path) -> int:
    return main(["report", "--published", str(folder)])


@pytest.mark.parametrize("which", ["the board", "the directory above"])
def test_what_follows_from_the_records_is_written_anew_and_they_stay(board: Path, which: str) -> None:
    before = files(board)
    assert rewrite(board if which == "the board" else board.parent) == 0
    after = files(board)
    for name in ("records.jsonl", "outcomes.npz", "leaderboard.csv", "per_class.csv", "leaderboard.json", "board.json"):
        assert after[name] == before[name], name
    assert after["README.md"].decode().startswith("# Toys (toys)\n\nBest: **hardened**, 75.0 %")
    assert (board.parent / "index.html").is_file()
    assert rewrite(board) == 0
    assert files(board) == after, "once more changes nothing"


def test_figures_are_drawn_again_where_records_are_enough_and_stay_where_not(board: Path) -> None:
    before = files(board)
    assert rewrite(board) == 0
    pictures = {picture.name: picture for picture in read_pictures(board)}
    order = list(get_args(Section))
    assert [order.index(picture.section) for picture in pictures.values()] == sorted(
        order.index(picture.section) for picture in pictures.values()
    )
    assert pictures["samples"] == PICTURES[0]
    assert "earlier version" not in pictures["classes"].caption
    after = files(board)
    assert after["figures/samples.png"] == before["figures/samples.png"]
    assert after["figures/classes.png"] != before["figures/classes.png"]


def test_records_that_do_not_follow_from_outcomes_are_refused(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = board / "records.jsonl"
    text = path.read_text(encoding="utf-8")
    assert '"metrics":{}' in text
    path.write_text(text.replace('"metrics":{}', '"metrics":{"accuracy":[0.85,0.1,0.9,40]}'), encoding="utf-8")
    before = files(board)
    assert "0.85" in complaint(rewrite(board), capsys)
    assert files(board) == before


def test_what_would_be_lost_is_refused(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (board / "notes.txt").write_text("mine", encoding="utf-8")
    assert "notes.txt" in complaint(rewrite(board), capsys)
    assert (board / "README.md").read_text(encoding="utf-8").startswith("# Written by an earlier version")


def test_a_directory_without_boards_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--published" in complaint(rewrite(tmp_path), capsys, 2)
