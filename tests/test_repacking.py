from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import write_format_1
from board_cells import TOYS
from PIL import Image

from robbench.conformance.figures import small_board
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note, read_pictures
from robbench.leaderboards.repacking import repack, repacked


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A board as an earlier version published it, with a chart and a photograph; and what it was repacked to."""
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    publish_earlier(before)
    shutil.copytree(before, after, dirs_exist_ok=True)
    repack(after)
    return before, after


def publish_earlier(tmp_path: Path) -> None:
    cells, _ = small_board()
    write_format_1(tmp_path, cells)
    write_board(tmp_path, TOYS, cells)
    (tmp_path / "figures").mkdir()
    told = {"title": "Title", "caption": "Caption", "alt": "Alternative", "main": False}
    entries = [{"name": "ranking", "section": "accuracy"} | told, {"name": "attacked-1", "section": "examples"} | told]
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    for entry in entries:
        Image.fromarray(noise).save(tmp_path / "figures" / f"{entry['name']}.png")
        (tmp_path / "figures" / f"{entry['name']}.svg").write_text("<svg/>")
    (tmp_path / "figures" / "figures.json").write_text(json.dumps(entries))


def test_figures_that_follow_from_the_archive_are_drawn_anew_and_the_others_are_kept(boards: tuple[Path, Path]) -> None:
    before, after = boards
    assert [record for record, _ in read_archive(after)] == [record for record, _ in read_archive(before)]
    assert (after / "records.jsonl").read_text().startswith('{"archive":2')
    pictures = {picture.name: picture for picture in read_pictures(after)}
    assert {"clean-vs-robust", "ranking", "attacked-1"} <= set(pictures)
    assert pictures["ranking"].caption.startswith("Best: ")
    assert (pictures["attacked-1"].caption, pictures["attacked-1"].photograph) == ("Caption", True)
    assert {path.name for path in (after / "figures").iterdir()} == {
        "figures.json",
        *(f"{name}.png" for name in pictures),
    }


def test_photographs_keep_their_looks_at_half_their_size(boards: tuple[Path, Path]) -> None:
    whole, small = ((folder / "figures" / "attacked-1.png").read_bytes() for folder in boards)
    assert len(small) < len(whole) / 2
    with Image.open(io.BytesIO(small)) as one, Image.open(io.BytesIO(whole)) as other:
        difference = np.abs(np.asarray(one.convert("RGB")).astype(int) - np.asarray(other))
    assert difference.mean() < 20, "of noise, which has more colors than any photograph"


def test_what_was_repacked_stays_as_it_is(boards: tuple[Path, Path]) -> None:
    found = repacked(boards[1])
    assert found == {name: (boards[1] / name).read_bytes() for name in found}


def test_the_board_that_is_made_of_it_has_the_same_numbers(boards: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = boards
    shutil.copytree(after / "figures", tmp_path / "figures")
    write_board(tmp_path, read_note(after), read_archive(after), read_pictures(after))
    for name in ("leaderboard.csv", "per_class.csv", "leaderboard.json"):
        assert (tmp_path / name).read_bytes() == (before / name).read_bytes()
