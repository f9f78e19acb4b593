from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from stores import BOARD, complaint, files, fill, publish, whole

from robbench.cli.main import main
from robbench.results.board_directory import held
from robbench.results.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("made") / "runs", whole()).root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(made, tmp_path / "runs")))


@pytest.mark.parametrize(
    ("target", "part"),
    [("runs/leaderboards", "lies in the store"), ("runs", "lies in the store"), ("taken", "not a directory")],
)
def test_places_that_cannot_be_published_into(
    target: str, part: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    before = files(tmp_path)
    shown = complaint(publish(store, tmp_path / target), capsys, 2)
    assert "--to" in shown
    assert part in shown
    assert files(tmp_path) == before


def test_a_directory_that_may_not_be_written_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, nothing is forbidden
    assert "no permission" in complaint(publish(store, tmp_path / "site"), capsys, 2)


def test_two_cannot_publish_into_one_directory_at_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path / "site"):
        shown = complaint(publish(store, tmp_path / "site"), capsys, 2)
    assert "somebody else is publishing into" in shown
    assert not list((tmp_path / "site").iterdir())
    assert publish(store, tmp_path / "site") == 0


def test_an_empty_store_has_nothing_to_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = complaint(publish(Store(tmp_path / "runs"), tmp_path / "site"), capsys, 2)
    assert "holds no run yet" in shown
    assert "publish" in complaint(main(["publish"]), capsys, 2)
    assert not (tmp_path / "site").exists()


def test_what_is_no_board_is_not_replaced(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(store, tmp_path / "site") == 0
    (tmp_path / "site" / BOARD / "thesis.txt").write_text("years of work")
    capsys.readouterr()
    assert "thesis.txt" in complaint(publish(store, tmp_path / "site"), capsys)
    assert (tmp_path / "site" / BOARD / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("step", [1, 2])
def test_an_interruption_leaves_the_old_board(
    step: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(store, tmp_path / "site") == 0
    before, count = files(tmp_path / "site"), 0
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert publish(store, tmp_path / "site") == 130
    assert files(tmp_path / "site") == before
    monkeypatch.undo()
    # As if the process had been killed between the two.
    (tmp_path / "site" / BOARD).rename(tmp_path / "site" / f".{BOARD}.old")
    (tmp_path / "site" / f".{BOARD}.new").mkdir()
    assert publish(store, tmp_path / "site") == 0
    assert files(tmp_path / "site") == before
    assert not list((tmp_path / "site").glob(".*"))
