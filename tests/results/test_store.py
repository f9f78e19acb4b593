from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from robbench.core import sealed
from robbench.core.atomic_io import write_atomically
from robbench.core.errors import Damaged, StoreError
from robbench.execution.jobs import carry_out
from robbench.results.schema import SCHEMA, BoardNote, Outcome, Record
from robbench.results.store import Store


def outcome(count: int = 12, seed: int = 0) -> Outcome:
    rng = np.random.default_rng(seed)

    def classes(*shape: int) -> np.ndarray:
        return rng.integers(0, 4, shape)

    return Outcome.of(
        4,
        "natural",
        ids=np.arange(count) * 7,
        labels=classes(count),
        clean=classes(count),
        final=classes(count),
        rounded=classes(count),
        attempted=rng.random(count) < 0.5,
        targets=np.full(count, -1),
        draws=classes(count, 3),
        every_target=classes(count, 0),
        linf=rng.random(count),
        l2=rng.random(count),
        l1=rng.random(count),
        l0=rng.random(count),
        forwards=rng.random(count),
        backwards=rng.random(count),
        scored=classes(count),
        flat=rng.random(count) < 0.5,
    )


EXAMPLES = outcome(3).to_bytes()


@pytest.fixture(scope="module")
def a_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A record as a run makes it."""
    plan = tiny.make(tmp_path_factory.mktemp("made"), conditions=["fgsm@ref"], recipe="epochs = 1", limit=12)
    (job,) = plan.jobs
    carry_out(plan, job, job.cells, lambda progress: None)
    record = Store(plan.request.out).record(job.cells[0].key)
    assert record is not None
    return record


# --- files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["text with ä", b"\x00\x01\xff", "", b"x" * 10_000_000])
def test_what_is_written_can_be_read(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace"), "open": (Path, "open")}[call], full)
    with pytest.raises(StoreError, match=r"cannot write .*file: No space left on device; what was finished is kept"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_crash_between_writing_and_renaming_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_record: Record
) -> None:
    store, rename = Store(tmp_path), Path.replace

    class Crash(BaseException):
        pass

    def crash_at_the_record(self: Path, target: Path) -> Path:
        if Path(target).name == "record.json":
            raise Crash
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crash_at_the_record)
    with pytest.raises(Crash):
        store.write_cell(a_record, outcome())
    monkeypatch.undo()
    assert store.record(a_record.key) is None
    assert not store.finished(a_record.key)
    written = store.write_cell(a_record, outcome(), {"examples.npz": EXAMPLES})
    assert store.record(a_record.key) == written
    assert store.finished(a_record.key)


def test_the_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_record: Record) -> None:
    order: list[tuple[str, bool]] = []

    def noting(path: Path, data: bytes | str, flush: bool = True) -> None:
        order.append((path.name, flush))
        write_atomically(path, data, flush)

    monkeypatch.setattr(sealed, "write_atomically", noting)
    Store(tmp_path).write_cell(a_record, outcome(), {"examples.npz": EXAMPLES})
    assert order == [("outcome.npz", False), ("examples.npz", False), ("record.json", True)]


# --- outcomes and records


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 1000))
def test_outcomes_survive_the_round_trip(count: int, seed: int) -> None:
    first = outcome(count, seed)
    second = Outcome.from_bytes(first.to_bytes())
    for field in fields(Outcome):
        before, after = getattr(first, field.name), getattr(second, field.name)
        assert type(before) is type(after)
        np.testing.assert_array_equal(before, after)
        assert np.asarray(before).dtype == np.asarray(after).dtype


def test_the_same_outcome_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = outcome().to_bytes()
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert outcome().to_bytes() == first
    assert outcome(seed=1).to_bytes() != first


def test_robust_is_right_before_and_after() -> None:
    made = replace(
        outcome(4),
        labels=np.array([0, 0, 0, 0]),
        clean=np.array([0, 0, 1, 1]),
        final=np.array([0, 1, 0, 1]),
    )
    assert replace(made, kind="attack").robust.tolist() == [True, False, False, False]
    assert replace(made, kind="chain").robust.tolist() == [True, False, False, False]
    assert replace(made, kind="natural").robust.tolist() == [True, False, True, False]
    assert len(made) == 4


def test_records_survive_the_round_trip(a_record: Record) -> None:
    text = a_record.to_json()
    assert Record.from_json(text) == a_record
    assert Record.from_json(text).to_json() == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_record_says_what_was_done(a_record: Record) -> None:
    assert a_record.status == "done"
    assert a_record.spec.condition.label == "fgsm@0.1"
    assert a_record.spec.condition.sample == 12
    assert a_record.costs.forwards == a_record.costs.backwards > 0
    assert sum(map(sum, a_record.confusion)) == 12
    assert a_record.metrics
    for measure in a_record.metrics.values():
        if measure.low is not None and measure.high is not None:
            assert measure.low <= measure.value <= measure.high
    assert a_record.provenance["versions"]["torch"] == importlib.metadata.version("torch")
    assert "seconds" in a_record.timings


@pytest.mark.parametrize("schema", [SCHEMA + 1, 999, "1", None, 1.5])
def test_a_record_of_a_newer_robbench_is_refused(tmp_path: Path, schema: object, a_record: Record) -> None:
    store = Store(tmp_path)
    store.write_cell(a_record, outcome())
    path = store.cell_dir(a_record.key) / "record.json"
    data = {**json.loads(path.read_text()), "schema_version": schema}
    del data["seal"]
    store.write(path, data)
    for read in (store.record, store.check_cell):
        with pytest.raises(StoreError, match=r"schema .*; use the robbench that wrote it$") as caught:
            read(a_record.key)
        assert not isinstance(caught.value, Damaged), "a run must not replace it"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", '"text"', "{}", '{"schema_version": 1}', "\udce4", "{]"]
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str, a_record: Record) -> None:
    store = Store(tmp_path)
    store.write_cell(a_record, outcome())
    path = store.cell_dir(a_record.key) / "record.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    for read in (store.record, store.check_cell):
        with pytest.raises(Damaged) as caught:
            read(a_record.key)
        assert str(caught.value).startswith(f"{path} is damaged: ")
        assert str(caught.value).endswith("; robbench run with its grid makes it again")
        assert "\n" not in str(caught.value)
    assert not store.finished(a_record.key)


@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_a_damaged_outcome_is_named(tmp_path: Path, damage: str, a_record: Record) -> None:
    store = Store(tmp_path)
    record = store.write_cell(a_record, outcome())
    read = store.outcome(record)
    assert read is not None
    np.testing.assert_array_equal(read.final, outcome().final)
    path = store.cell_dir(record.key) / "outcome.npz"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-100] if damage == "short" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(StoreError, match=str(path)):
        store.outcome(record)
    assert store.outcome(record.model_copy(update={"outcome_sha256": None})) is None


def test_a_damaged_model_description_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_atomically(store.model_dir("abc") / "model.json", "{")
    with pytest.raises(StoreError, match=r"model\.json"):
        store.model_info("abc")


def test_failed_cells_are_not_finished_and_unsupported_ones_are(tmp_path: Path, a_record: Record) -> None:
    store = Store(tmp_path)
    assert store.record("nothing") is None
    for status, finished in (("failed", False), ("unsupported", True), ("done", True)):
        store.write_cell(a_record.model_copy(update={"status": status, "outcome_sha256": None}), None)
        assert store.finished(a_record.key) is finished


def test_keys_sizes_and_removal(tmp_path: Path, a_record: Record) -> None:
    store = Store(tmp_path)
    assert store.keys("cells") == []
    store.write_cell(a_record, None, {"examples.npz": EXAMPLES})
    assert store.keys("cells") == [a_record.key]
    seals = 64 + len(f' "seal": "{"0" * 20}",\n')
    assert store.size("cells", a_record.key) == len(EXAMPLES) + len(a_record.to_json().encode()) + seals
    store.remove("cells", a_record.key)
    assert store.keys("cells") == []
    store.remove("cells", a_record.key)


# --- schemas


@pytest.mark.parametrize("model", [Record, BoardNote])
def test_every_key_of_what_is_stored_is_described(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    checked = 0
    parts = [part for part in (schema, *schema.get("$defs", {}).values()) if "properties" in part]
    for part in parts:
        assert part["description"]
        for name, described in part["properties"].items():
            assert len(described.get("description", "")) > 8, f"{part['title']}.{name}"
            checked += 1
    assert checked >= 10


def test_records_of_schema_2_are_read_in_the_words_of_today(a_record: Record) -> None:
    old = json.loads(a_record.to_json()) | {
        "schema_version": 2,
        "traits": ["randomised", "averaged"],
        "flags": {
            "not-monotone": "4 of 40 images fooled by pgd@0.1 withstand pgd@0.2",
            "survives-everything": "decides for the same class on all 40 unchanged images",
        },
        "cautions": {"randomised": "answers the same image differently; attacks follow an average over draws"},
    }
    found = Record.from_json(json.dumps(old))
    assert found.schema_version == SCHEMA
    assert found.traits == ("randomized", "averaged")
    assert found.flags == {
        "not-monotone": "4 of 40 images fooled by pgd@0.1 are robust to pgd@0.2",
        "survives-everything": "predicts the same class for all 40 clean images",
    }
    assert found.cautions == {"randomized": "answers the same image differently; attacks follow an average over draws"}
    assert found.model_copy(update={"traits": a_record.traits, "flags": {}, "cautions": {}}) == a_record


def test_notes_of_an_earlier_version_are_read_as_they_would_be_written_now() -> None:
    reference = {"row": "a · clean", "figure": "accuracy", "value": 0.5}
    note = BoardNote.model_validate({"grid": "generalisation-study", "title": "t", "references": [reference]})
    assert (note.grid, note.references[0].row) == ("generalization-study", "a · no defense")


# --- models


def test_the_history_of_a_training_that_diverged_is_verified(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "models" / "abc" / "history.csv"
    store.write_diverged("abc", "epoch\n1\n")
    assert not store.check_model("abc")
    assert store.content(path) == b"epoch\n1\n"
    path.write_text("epoch\n2\n")
    for read in (lambda: store.check_model("abc"), lambda: store.content(path)):
        with pytest.raises(Damaged, match=r"history\.csv is damaged"):
            read()
    store.write_model("abc", {}, b"weights", "epoch\n3\n")
    assert store.check_model("abc")
    assert store.content(path) == b"epoch\n3\n"


@pytest.mark.parametrize("name", ["weights.safetensors", "history.csv", "model.json"])
def test_a_model_with_files_of_another_is_not_there(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    for key in ("abc", "def"):
        store.write_model(key, {"notes": []}, f"weights of {key}".encode(), f"epoch\n{key}\n")
        assert store.weights(key) == f"weights of {key}".encode()
    (store.model_dir("abc") / name).write_bytes((store.model_dir("def") / name).read_bytes())
    assert not store.has_model("abc")
    assert store.has_model("def")
    if name != "history.csv":
        with pytest.raises(Damaged, match=name):
            store.weights("abc")


def test_models_of_versions_without_seals_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_model("abc", {"notes": []}, b"weights", "epoch\n1\n")
    path = store.model_dir("abc") / "model.json"
    info = json.loads(path.read_text())
    for key in ("seal", "history_sha256"):
        del info[key]
    path.write_text(json.dumps(info))
    assert store.check_model("abc")
    assert store.content(store.model_dir("abc") / "history.csv") == b"epoch\n1\n"
    (store.model_dir("abc") / "weights.safetensors").write_bytes(b"weightt")
    assert not store.has_model("abc")


def test_a_cell_that_was_done_again_meanwhile_is_left_alone(tmp_path: Path, a_record: Record) -> None:
    store = Store(tmp_path)
    before = store.write_cell(a_record.model_copy(update={"status": "failed", "outcome_sha256": None}), None)
    done = store.write_cell(a_record, outcome())
    store.replace_record(before, before.model_copy(update={"notes": ("an older one",)}))
    assert store.record(a_record.key) == done
    store.replace_record(done, done.model_copy(update={"notes": ("a newer one",)}))
    record = store.record(a_record.key)
    assert record is not None
    assert record.notes == ("a newer one",)
    assert store.finished(a_record.key)


def test_the_list_of_boards_outlives_what_another_grid_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for board in ("a", "b"):
        write_atomically(tmp_path / "leaderboards" / board / "README.md", board)
        store.note_files([board])
    assert store.check_files("a")
    assert store.check_files("b")
    assert not store.check_files("c")
    write_atomically(tmp_path / "leaderboards" / "b" / "README.md", "changed")
    assert store.check_files("a")
    with pytest.raises(Damaged, match=r"b/README\.md"):
        store.check_files("b")
    store.note_files(["b"])
    assert store.check_files("b")
    store.forget_files()
    assert not store.check_files("a")
