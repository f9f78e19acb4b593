from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import stores
from board_cells import A_MODEL, PGD, cell
from stores import BOARD, BUILT_IN, flip

from robbench.execution import boards
from robbench.execution.boards import write_boards
from robbench.results import board_origin, store_index
from robbench.results.schema import BoardNote
from robbench.results.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose board was just made, without figures."""
    monkeypatch.setattr("robbench.leaderboards.plots.draw", lambda *_: ())
    monkeypatch.setattr(store_index, "SETTLED", -60.0)
    made = stores.fill(tmp_path, stores.whole())
    write_boards(made)
    return made


def made_again(store: Store) -> bool:
    written = write_boards(store, again=False)
    assert {*written.files} | {*written.unchanged} == {BOARD}
    return BOARD in written.files


def test_a_board_that_would_be_the_same_is_not_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stores.files(store.root / "leaderboards")
    assert not made_again(store)
    with monkeypatch.context() as patched:
        patched.setattr(boards, "board_cells", lambda *_: pytest.fail("its cells are read"))
        assert not made_again(store)
    assert set(write_boards(store).files) == {BOARD}
    assert stores.files(store.root / "leaderboards") == before


def other_note(store: Store) -> None:
    note = store.board(BOARD)
    store.note_board(BOARD, BoardNote(grid="small", title="Others"), note["cells"], note["models"])


def other_record(store: Store) -> None:
    record = store.record(store.board(BOARD)["cells"][0])
    assert record is not None
    store.write_cell(record.model_copy(update={"timings": {"seconds": 7.0}}), None)


def other_history(store: Store) -> None:
    store.write_model(store.board(BOARD)["models"][0], {}, b"", "epoch\n1\n")


def diverged(store: Store) -> None:
    store.write_diverged(store.board(BOARD)["models"][1], "epoch\n1\n")


def lost_cell(store: Store) -> None:
    store.remove("cells", store.board(BOARD)["cells"][0])


def lost_file(store: Store) -> None:
    (store.root / "leaderboards" / BOARD / "README.md").unlink()


def damaged_file(store: Store) -> None:
    flip(store.root / "leaderboards" / BOARD / "index.html")


def damaged_list(store: Store) -> None:
    flip(store.root / "leaderboards.json")


CHANGES = (other_note, other_record, other_history, diverged, lost_cell, lost_file, damaged_file, damaged_list)


@pytest.mark.parametrize("change", CHANGES)
def test_a_board_is_made_again_where_something_changed(store: Store, change: Callable[[Store], None]) -> None:
    change(store)
    assert made_again(store)
    assert not made_again(store)


def test_other_code_makes_boards_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_origin, "source_digest", lambda: "another")
    assert made_again(store)


def test_a_damaged_cell_is_told_of_and_makes_no_board(store: Store) -> None:
    flip(store.cell_dir(store.board(BOARD)["cells"][0]) / "outcome.npz")
    for _ in range(2):
        assert "outcome.npz is damaged" in write_boards(store, again=False).refused[BOARD]


def test_failed_and_missing_cells_of_a_board_that_stays_are_told(store: Store) -> None:
    failed, _ = cell(A_MODEL, PGD, "out of luck", seed=1)
    note = store.board(BOARD)
    store.write_cell(failed, None)
    store.note_board(BOARD, BoardNote(grid="small", title=""), [*note["cells"], failed.key, "none"], note["models"])
    assert made_again(store)
    written = write_boards(store, again=False)
    assert written.unchanged == {BOARD: (failed,)}
    assert written.failed() == [failed]
    assert written.missing == {BOARD: 1}
    origin = board_origin.BoardOrigin.now(BOARD, store_index.StoreIndex.of(store), BUILT_IN)
    assert origin.digest == store.made_of(BOARD)


def test_boards_of_a_run_that_goes_on_load_themselves_again(store: Store) -> None:
    page = store.root / "leaderboards" / BOARD / "index.html"
    whole = page.read_bytes()
    assert b"refresh" not in whole
    write_boards(store, again=False, reload=30.0)
    assert b'<meta http-equiv="refresh" content="30">' in page.read_bytes()
    assert BOARD in write_boards(store, again=False, reload=30.0).unchanged
    assert made_again(store)
    assert page.read_bytes() == whole
