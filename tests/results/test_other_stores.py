"""Work of other stores: taken where it is whole and fits, left where it is not, and never written to."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from stores import complaint, files, flip

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.execution.runner import remaining
from robbench.planning.plan import Plan
from robbench.results import other_stores
from robbench.results.other_stores import Taken, take_over
from robbench.results.schema import Record, dumps
from robbench.results.store import Store, check_sources
from robbench.results.store_index import StoreIndex

MODELS = ["name = 'a'", "name = 'b'\nstart = 'a'\ndefense = 'fgm'"]
CONDITIONS = ["clean", "fgsm@linf:ref", "fgsm@l2:ref", "union@linf:ref|l2:ref"]
CELLS, TRAINED = 8, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A grid that a store has finished."""
    plan = tiny.make(tmp_path_factory.mktemp("made"), MODELS, CONDITIONS, recipe="epochs = 1", limit=30)
    tiny.carried_out(plan)
    return plan


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_stores, "_PAUSE", 0.0)


@pytest.fixture
def theirs(made: Plan, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(made.request.out, tmp_path / "theirs")))


@pytest.fixture
def plan(made: Plan, tmp_path: Path) -> Plan:
    """The same with a store of its own."""
    (tmp_path / "mine").mkdir()
    return replace(made, request=replace(made.request, out=tmp_path / "mine"))


def taken(plan: Plan, *sources: Store) -> list[Taken]:
    return take_over(plan, StoreIndex.of(Store(plan.request.out)), [source.root for source in sources])


def cell(plan: Plan, row: str, condition: str) -> str:
    (found,) = [c.key for job, c in plan.cells if job.spec.label == row and c.condition.label.startswith(condition)]
    return found


def key(plan: Plan, row: str) -> str:
    return next(job.key for job in plan.jobs if job.spec.label == row)


def test_what_another_store_has_finished_is_not_done_again(plan: Plan, theirs: Store) -> None:
    before = files(theirs.root)
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models, found.skipped) == (CELLS, TRAINED, [])
    mine = Store(plan.request.out)
    assert remaining(plan, mine) == []
    for kind in ("cells", "models"):
        assert files(mine.root / kind) == files(theirs.root / kind), "with its provenance, to the last byte"
    assert files(theirs.root) == before, "nothing is written there"
    assert not list(mine.root.glob(".*"))
    (again,) = taken(plan, theirs)
    assert (again.cells, again.models) == (0, 0)


def test_a_store_without_permission_to_write_is_enough(
    plan: Plan, theirs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [theirs.root, *theirs.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in theirs.root.rglob("*")}
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models) == (CELLS, TRAINED)
    assert {path: path.stat().st_mtime_ns for path in theirs.root.rglob("*")} == before
    assert Store(plan.request.out).cell_dir(cell(plan, "a", "clean")).stat().st_mode & 0o200, "the copy is one's own"
    for path in [theirs.root, *theirs.root.rglob("*")]:
        path.chmod(0o755)


def test_the_parts_of_several_stores_come_together(plan: Plan, theirs: Store, tmp_path: Path) -> None:
    other = Store(Path(shutil.copytree(theirs.root, tmp_path / "other")))
    for store, gone in ((theirs, "fgsm@l2"), (other, "fgsm@0")):
        for row in ("a", "b"):
            store.remove("cells", cell(plan, row, gone))
            if store is other:
                store.remove("cells", cell(plan, row, "union"))
    first, second = taken(plan, theirs, other)
    assert (first.cells, first.models, second.cells, second.models) == (4, 2, 2, 0)
    left = [c.condition.label for _, cells in remaining(plan, Store(plan.request.out)) for c in cells]
    assert [label.partition("@")[0] for label in left] == ["union", "union"], "its parts are only now together"


# --- damage


def in_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit is flipped": flip,
    "it is empty": lambda path: path.write_bytes(b""),
    "it is cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "it is a pipe": in_place(os.mkfifo),
    "it is a device": in_place(lambda path: path.symlink_to("/dev/zero")),
    "it is a directory": in_place(Path.mkdir),
    "it is of another key": lambda path: path.write_bytes(
        next(other for other in path.parent.parent.glob(f"*/{path.name}") if other.parent != path.parent).read_bytes()
    ),
}


@pytest.mark.parametrize("name", ["record.json", "outcome.npz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_is_named_and_left(damage: str, name: str, plan: Plan, theirs: Store) -> None:
    broken = cell(plan, "a", "fgsm@l2")
    DAMAGES[damage](theirs.cell_dir(broken) / name)
    (found,) = taken(plan, theirs)
    assert found.models == TRAINED
    assert found.cells == CELLS - 2, "and with it the union that rests on it"
    (line,) = found.skipped
    assert str(theirs.cell_dir(broken) / name) in line or str(theirs.cell_dir(broken) / "record.json") in line
    assert str(plan.request.out) not in line
    left = [c.condition.label for _, cells in remaining(plan, Store(plan.request.out)) for c in cells]
    assert len(left) == 2


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json", "history.csv"])
def test_a_damaged_model_is_left_and_cells_of_it_are_taken(name: str, plan: Plan, theirs: Store) -> None:
    flip(theirs.model_dir(key(plan, "b")) / name)
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models, len(found.skipped)) == (CELLS, TRAINED - 1, 1)


def test_cells_of_a_model_that_has_to_be_trained_here_are_left(plan: Plan, theirs: Store) -> None:
    """Two trainings of one recipe on two machines are two models."""
    flip(theirs.model_dir(key(plan, "a")) / "weights.safetensors")
    theirs.remove("cells", cell(plan, "a", "fgsm@l2"))
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models) == (0, 0)
    assert "must be trained for what is left to do" in found.skipped[1]
    assert "it starts from a model that was trained otherwise" in found.skipped[2]


def test_a_record_that_was_put_under_another_key_is_left(plan: Plan, theirs: Store) -> None:
    """With seals as they should be: whoever can write there can make some."""
    one, other = cell(plan, "a", "fgsm@l2"), cell(plan, "a", "fgsm@0")
    record = theirs.record(one)
    assert record is not None
    theirs.write_cell(record.model_copy(update={"key": other}), theirs.outcome(record))
    (found,) = taken(plan, theirs)
    assert any("follows from its specification" in line for line in found.skipped)
    assert Store(plan.request.out).record(other) is None


def test_records_of_a_newer_robbench_are_left(plan: Plan, theirs: Store) -> None:
    path = theirs.cell_dir(cell(plan, "b", "union")) / "record.json"
    value = theirs.read(path)
    assert value is not None
    theirs.write(path, value | {"schema_version": 99})
    (found,) = taken(plan, theirs)
    assert found.cells == CELLS - 1
    assert any("use the robbench that wrote it" in line for line in found.skipped)


def test_records_without_seals_of_an_older_schema_are_taken(plan: Plan, theirs: Store) -> None:
    old = cell(plan, "a", "clean")
    path = theirs.cell_dir(old) / "record.json"
    value = theirs.read(path)
    assert value is not None
    path.write_text(dumps(value), encoding="utf-8")
    (found,) = taken(plan, theirs)
    assert (found.cells, found.skipped) == (CELLS, [])
    record = Store(plan.request.out).record(old)
    assert isinstance(record, Record)
    assert record.provenance == value["provenance"]


def test_a_store_that_is_being_written_is_looked_at_again(
    plan: Plan, theirs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its outcome and its record, a cell that is done again does not fit together."""
    path = theirs.cell_dir(cell(plan, "a", "fgsm@l2")) / "outcome.npz"
    whole = path.read_bytes()
    flip(path)
    monkeypatch.setattr("robbench.results.other_stores.time.sleep", lambda _: path.write_bytes(whole))
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models, found.skipped) == (CELLS, TRAINED, [])


def test_what_is_taken_while_somebody_writes_is_whole(plan: Plan, theirs: Store) -> None:
    record = theirs.record(cell(plan, "a", "fgsm@l2"))
    assert record is not None
    outcome = theirs.outcome(record)
    assert outcome is not None
    versions = [outcome, type(outcome)(**{**vars(outcome), "forwards": outcome.forwards + 1})]
    over = threading.Event()

    def write() -> None:
        for version in itertools.cycle(versions):
            if over.is_set():
                return
            theirs.write_cell(record, version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        (found,) = taken(plan, theirs)
    finally:
        over.set()
        writer.join()
    mine = Store(plan.request.out)
    assert found.models == TRAINED
    assert found.cells >= CELLS - 2
    assert all(mine.check_cell(key) for key in mine.keys("cells"))


# --- what does not belong together


def test_a_model_that_was_trained_otherwise_stays_apart_with_those_that_start_from_it(
    plan: Plan, theirs: Store
) -> None:
    mine, own = Store(plan.request.out), key(plan, "a")
    info = theirs.model_info(own)
    mine.write_model(own, info, theirs.weights(own) + b" ", "epoch\n")
    before = files(mine.root)
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models) == (0, 0)
    assert ["its weights are others there" in line or "it starts from" in line for line in found.skipped] == [True] * 2
    assert files(mine.root) == before


def test_cells_of_a_model_that_predicts_differently_stay_apart(plan: Plan, theirs: Store) -> None:
    mine = Store(plan.request.out)
    record = theirs.record(cell(plan, "a", "clean"))
    assert record is not None
    outcome = theirs.outcome(record)
    assert outcome is not None
    wrong = (outcome.clean + 1) % outcome.num_classes
    mine.write_cell(record, type(outcome)(**{**vars(outcome), "clean": wrong, "final": wrong, "rounded": wrong}))
    (found,) = taken(plan, theirs)
    assert (found.cells, found.models) == (0, 0)
    assert "its model predicts differently there" in found.skipped[0]


def test_what_somebody_is_at_is_left_to_him(plan: Plan, theirs: Store) -> None:
    mine, busy = Store(plan.request.out), cell(plan, "a", "clean")
    with mine.lease("cells", busy):
        (found,) = taken(plan, theirs)
    assert found.cells == CELLS - 1
    assert mine.record(busy) is None


# --- requests


@pytest.mark.parametrize(
    ("place", "part"),
    [("gone", "No such file"), ("file", "Not a directory"), ("empty", "it has no cells"), ("runs", "written to")],
)
def test_places_that_are_no_other_store(place: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "cells").mkdir(parents=True)
    with pytest.raises(RequestError, match=part):
        check_sources(Store(tmp_path / "runs"), [tmp_path / place])


def test_a_wrong_source_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--grid", "smoke", "--out", str(tmp_path / "runs"), "--store-from", str(tmp_path / "gone")]
    assert "--store-from" in complaint(main(words), capsys, 2)
    (tmp_path / "gone" / "cells").mkdir(parents=True)
    assert "leave one out" in complaint(main([*words, "--fresh"]), capsys, 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.end_to_end
@pytest.mark.usefixtures("one_core")
def test_a_run_shows_the_same_board_as_the_store_that_it_was_taken_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(tiny.grid_text(MODELS, CONDITIONS, "epochs = 1"), encoding="utf-8")
    words = ["run", "--grid", str(grid), "--limit", "30", "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "theirs")]) == 0
    capsys.readouterr()
    assert main([*words, str(tmp_path / "mine"), "--store-from", str(tmp_path / "theirs")]) == 0
    shown = capsys.readouterr()
    assert f"{tmp_path / 'theirs'}: {CELLS} finished cells and {TRAINED} models were taken over" in shown.err
    assert f"{CELLS} done, 0 to do" in shown.out
    assert files(tmp_path / "mine" / "leaderboards") == files(tmp_path / "theirs" / "leaderboards")
