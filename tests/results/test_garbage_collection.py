from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from board_cells import A_MODEL, PGD, cell
from stores import B_MODEL, complaint, finished, row, whole, write

from robbench.cli.main import main
from robbench.results.board_cells import BoardNames, list_boards
from robbench.results.garbage_collection import remove, survey
from robbench.results.schema import BoardNote, digest
from robbench.results.store import Store

CELLS = whole()
KEYS = [record.key for record, _ in CELLS]
A, B = ({record.spec.model_key for record, _ in row(spec)}.pop() for spec in (A_MODEL, B_MODEL))


def note(store: Store, board: str, keys: list[str], models: list[str]) -> None:
    store.note_board(board, BoardNote(grid=board, title="Toys"), keys, models)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two boards that share a row; models with weights; not to be written to."""
    store = Store(tmp_path_factory.mktemp("made"))
    for made in CELLS:
        store.write_cell(*finished(made))
    for key in (A, B):
        folder = store.model_dir(key)
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "model.json").write_text(json.dumps({"start": None}))
    note(store, "one", KEYS[:3], [A])
    note(store, "two", KEYS, [A, B])
    write(store)
    list_boards(store, [])
    return store


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A copy of it."""
    return Store(Path(shutil.copytree(made.root, tmp_path / "runs")))


def left(store: Store) -> tuple[list[str], list[str], list[str]]:
    return sorted(store.boards()), store.keys("cells"), store.keys("models")


def gc(store: Store, *words: str) -> int:
    return main(["gc", "--out", str(store.root), *words])


def content(store: Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and path.name != ".lock"}


# --- what stays


def unnoted(store: Store) -> None:
    """As where an earlier version noted another request under the board's name."""
    shutil.rmtree(store.root / "boards")


def replaced(store: Store) -> None:
    note(store, "two", KEYS[:1], [A])


def requested(store: Store) -> None:
    store.note_request("standing", "two", {"two": KEYS})
    replaced(store)


def damaged(store: Store) -> None:
    replaced(store)
    (store.cell_dir(KEYS[5]) / "record.json").write_text("{")


def searched(store: Store) -> None:
    shutil.copytree(store.model_dir(A), store.model_dir("trial"))


def edited(store: Store) -> None:
    (store.root / "mine.tmp").write_text("not the store's")
    (store.root / "cells" / KEYS[0] / "note.txt").write_text("mine")


@pytest.mark.parametrize("change", [unnoted, replaced, requested, damaged, searched, edited], ids=lambda f: f.__name__)
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_nothing_that_was_finished_goes_by_itself(
    store: Store, change: Callable[[Store], None], words: tuple[str, ...]
) -> None:
    change(store)
    before = content(store)
    assert gc(store, *words) == 0
    assert content(store) == before


# --- what goes


def half_a_record(store: Store) -> Path:
    path = store.cell_dir(KEYS[0]) / ".record.json.12345678.tmp"
    path.write_text("half a rec")
    return path


def outcome_alone(store: Store) -> Path:
    path = store.cell_dir("0" * 20) / "outcome.npz"
    path.parent.mkdir()
    path.write_bytes(b"x" * 200_000)
    return path


def failure_of_no_board(store: Store) -> Path:
    record, _ = cell(A_MODEL, PGD, "it rained", seed=7)
    store.write_cell(record, None)
    return store.cell_dir(record.key)


def checkpoint_of_a_trained_model(store: Store) -> Path:
    path = store.model_dir(A) / "checkpoint.pt"
    path.write_bytes(b"half way")
    return path


def checkpoint_of_no_board(store: Store) -> Path:
    path = store.model_dir("1" * 20) / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(b"half way")
    return path


def half_decoded(store: Store) -> Path:
    path = store.root / "data" / ".digits-1-abc" / "images.npy"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"0")
    return path


@pytest.mark.parametrize(
    "make",
    [
        half_a_record,
        outcome_alone,
        failure_of_no_board,
        checkpoint_of_a_trained_model,
        checkpoint_of_no_board,
        half_decoded,
    ],
    ids=lambda function: function.__name__,
)
def test_leftovers_of_unfinished_work_are_shown_and_go(
    store: Store, make: Callable[[Store], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(store)
    path = make(store)
    capsys.readouterr()
    assert gc(store, "--dry-run") == 0
    assert path.exists()
    shown = capsys.readouterr().out
    assert "would be deleted: " in shown
    assert any(str(place) in shown for place in (path, path.parent))
    assert gc(store) == 0
    assert "deleting: " in capsys.readouterr().out
    assert not path.exists()
    assert content(store) == before


def test_unfinished_work_of_a_board_stays_to_be_gone_on_with(store: Store) -> None:
    record, _ = cell(A_MODEL, PGD, "it rained", seed=7)
    store.write_cell(record, None)
    note(store, "three", [record.key], ["2" * 20])
    checkpoint = store.model_dir("2" * 20) / "checkpoint.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"half way")
    before = content(store)
    assert gc(store) == 0
    assert content(store) == before


# --- boards that are named


def test_a_board_goes_with_what_no_other_has(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.note_request("both", "two", {"two": KEYS, "one": KEYS[:3]})
    capsys.readouterr()
    assert gc(store, "--dry-run") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "0"] in shown
    assert ["two", "3"] in shown
    assert gc(store, "--board", "two") == 0
    assert left(store) == (["one"], sorted(KEYS[:3]), [A])
    assert store.requests() == {}, "it would say that all is done"
    assert not (store.root / "leaderboards" / "two").exists()
    assert "two/index.html" not in (store.root / "leaderboards" / "index.html").read_text()
    assert gc(store, "--board", "one") == 0
    assert left(store) == ([], [], [])


def test_a_board_that_shares_everything_goes_alone(store: Store) -> None:
    assert gc(store, "--board", "one") == 0
    assert left(store) == (["two"], sorted(KEYS), sorted([A, B]))


def test_cells_that_a_request_of_another_board_finished_stay(store: Store) -> None:
    """The other board was noted anew since, as by another version of a grid."""
    store.note_request("earlier", "one", {"one": KEYS[3:4]})
    assert gc(store, "--board", "two") == 0
    assert left(store) == (["one"], sorted(KEYS[:4]), sorted([A, B]))


def test_a_model_that_another_starts_from_stays(store: Store) -> None:
    store.write_model(A, {"start": B}, b"", "")
    assert gc(store, "--board", "two") == 0
    assert left(store)[2] == sorted([A, B])


def test_whatever_interrupts_it_the_same_words_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def dying(self: Store, kind: str, key: str) -> None:
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        shutil.rmtree(self.root / kind / key)

    monkeypatch.setattr(Store, "remove", dying)
    with pytest.raises(KeyboardInterrupt):
        remove(survey(store, ["two"]))
    monkeypatch.undo()
    assert gc(store, "--board", "two") == 0
    assert left(store) == (["one"], sorted(KEYS[:3]), [A])


@pytest.mark.parametrize("board", ["tow", "../one", "", "one.json"])
def test_a_board_that_is_not_there_is_refused(store: Store, board: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(store)
    capsys.readouterr()
    error = complaint(gc(store, "--board", board), capsys, 2)
    assert f'no board "{board}"' in error
    assert content(store) == before


@pytest.mark.parametrize("text", ["{", "[]", '{"grid": "a"}', '{"grid": "a", "cells": {}, "models": []}'])
def test_a_damaged_note_keeps_everything(store: Store, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (store.root / "boards" / "one.json").write_text(text)
    before = content(store)
    capsys.readouterr()
    assert gc(store, "--board", "two") == 1
    assert "one.json" in capsys.readouterr().err
    assert content(store) == before


def test_keys_in_a_note_lead_nowhere_else(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    note(store, "three", ["../../precious", str(precious)], ["../../precious"])
    assert gc(store, "--board", "three") == 0
    assert precious.is_dir()


# --- names


def test_names_are_those_of_the_specifications() -> None:
    specs = {record.key: record.spec for record, _ in CELLS}
    names = BoardNames.of(specs)
    assert {key: names.applied(key, spec) for key, spec in specs.items()} == specs
    other = BoardNames.model_validate_json(names.model_dump_json())
    assert other == names
    assert BoardNames.of({}).applied(digest("unknown"), CELLS[0][0].spec).model == CELLS[0][0].spec.model
