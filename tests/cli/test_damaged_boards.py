"""A board that is damaged is named, and keeps no command from the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import BOARD, fill, flip, publish, whole, write

from robbench.cli.main import main
from robbench.results.schema import BoardNote
from robbench.results.store import OUTCOME, Store


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def lacking(path: Path) -> None:
    """As an earlier version wrote notes, without a seal, and not all of it."""
    path.write_text(json.dumps({"grid": "small", "cells": []}), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three boards: two of one grid, and one of another."""
    cells = whole()
    store = fill(tmp_path_factory.mktemp("made") / "runs", cells)
    for name, grid, part in (("a-toys", "small", cells[:3]), ("others", "large", cells[3:])):
        keys = [record.key for record, _ in part]
        store.note_board(name, BoardNote(grid=grid, title=name), keys, [part[0][0].spec.model_key])
    write(store)
    return store.root


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("robbench.leaderboards.plots.draw", lambda *_: [])
    return Store(Path(shutil.copytree(made, tmp_path / "runs")))


@pytest.mark.parametrize("damage", [cut, flip, lacking])
def test_a_damaged_note_stops_no_other_board(
    store: Store, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.root / "boards" / "a-toys.json"
    damage(path)
    for words, others in (([], {BOARD, "others"}), (["--grid", "small"], {BOARD}), (["--board", BOARD], {BOARD})):
        named = "--board" not in words
        for board in others:
            (store.root / "leaderboards" / board / "README.md").unlink()
        assert main(["report", "--out", str(store.root), *words]) == (1 if named else 0)
        lines = capsys.readouterr().err.splitlines()
        told = [line for line in lines if "README.md is damaged" not in line]
        assert len(told) == (1 if named else 0)
        # The first report finds boards of which nothing says what they were made of.
        assert len(lines) - len(told) == (len(others) if words else 0), "each README that was removed is told"
        assert all(line.startswith(f"robbench: a-toys: {path} is damaged: ") for line in told)
        assert all((store.root / "leaderboards" / board / "README.md").is_file() for board in others)
    assert main(["report", "--out", str(store.root), "--board", "a-toys"]) == 1
    assert publish(store, tmp_path / "site") == 1
    assert {folder.name for folder in (tmp_path / "site").iterdir() if folder.is_dir()} == {BOARD, "others"}
    assert "robbench: a-toys: " in capsys.readouterr().err


def test_a_damaged_cell_stops_no_board_without_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    key = store.board("others")["cells"][0]
    flip(store.cell_dir(key) / OUTCOME)
    readme = store.root / "leaderboards" / "a-toys" / "README.md"
    readme.unlink()
    capsys.readouterr()
    assert main(["report", "--out", str(store.root)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["others:", f"{BOARD}:"]
    assert all(str(store.cell_dir(key) / OUTCOME) in line for line in told)
    assert readme.is_file()


def test_what_is_no_board_at_all_is_still_a_wrong_request(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--grid", "smal"], ["--board", "a-toy"]):
        assert main(["report", "--out", str(store.root), *words]) == 2
        assert "did you mean" in capsys.readouterr().err
