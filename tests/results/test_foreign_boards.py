from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_format_1
from board_cells import A_MODEL, model
from stores import B_MODEL, BOARD, LABELS, attacked, complaint, fill, publish, row

from robbench.leaderboards.archive import OUTCOMES, RECORDS, read_archive, write_archive
from robbench.results.schema import Outcome
from robbench.results.store import Store

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a published board of somebody else."""
    folder = tmp_path_factory.mktemp("made")
    fill(folder / "runs", row(A_MODEL))
    assert publish(fill(folder / "others", row(B_MODEL, (20, 30))), folder / "theirs") == 0
    shutil.copytree(folder / "theirs", folder / "earlier")
    write_format_1(folder / "earlier" / BOARD, read_archive(folder / "theirs" / BOARD))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def text(name: str, content: str | bytes) -> Damage:
    return lambda board: (board / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def records(change: Callable[[list[Any]], object]) -> Damage:
    """Another content of the records, as plain data."""

    def damage(board: Path) -> None:
        path = board / RECORDS
        data = [json.loads(line) for line in path.read_text().splitlines()]
        change(data)
        path.write_text("".join(json.dumps(line) + "\n" for line in data))

    return damage


def outcomes(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Other outcomes, under the hashes of the true ones."""

    def damage(board: Path) -> None:
        with np.load(board / OUTCOMES) as arrays:
            data = {key: arrays[key] for key in arrays.files}
        change(data)
        np.savez(board / OUTCOMES, **data)

    return damage


def one_array(content: np.ndarray) -> Damage:
    """An npy in place of the npz."""
    buffer = io.BytesIO()
    np.save(buffer, content, allow_pickle=True)
    return text(OUTCOMES, buffer.getvalue())


def array(**changed: Any) -> Damage:
    """An outcome of the earlier format with another array, and a record that names the hash of that outcome."""
    names = [field.name for field in fields(Outcome)]

    def damage(board: Path) -> None:
        record, result = read_archive(board)[2]
        assert result is not None
        buffer = io.BytesIO()
        values = {name: changed.get(name, np.asarray(getattr(result, name))) for name in names}
        np.savez(buffer, **{name: value for name, value in values.items() if value is not None})
        data = buffer.getvalue()
        outcomes(lambda arrays: arrays.update({record.key: np.frombuffer(data, np.uint8)}))(board)
        records(lambda lines: lines[2].update(outcome_sha256=hashlib.sha256(data).hexdigest()))(board)

    return damage


def stage(**changed: Any) -> Damage:
    return records(lambda lines: lines[2]["spec"]["condition"]["stages"][0].update(changed))


def figures(content: str) -> Damage:
    def damage(board: Path) -> None:
        (board / "figures").mkdir()
        (board / "figures" / "figures.json").write_text(content)
        (board / "outside.png").write_bytes(b"")
        (board / "outside.svg").write_bytes(b"")

    return damage


PICTURE = {"section": "data", "title": "", "caption": "", "alt": ""}
DAMAGE: dict[str, tuple[Damage, str]] = {
    "no JSON": (text(RECORDS, "{\n"), RECORDS),
    "no text": (text(RECORDS, b"\xff\xfe\x00"), RECORDS),
    "nothing": (text(RECORDS, ""), f"{RECORDS}, line 1"),
    "deep JSON": (text(RECORDS, "[" * 200_000 + "\n"), RECORDS),
    "no record": (text(RECORDS, "[]\n"), "schema"),
    "a later schema": (records(lambda lines: lines[0].update(schema_version=99)), "schema 99"),
    "an unknown field": (records(lambda lines: lines[0].update(extra=1)), "extra"),
    "a path for a key": (records(lambda lines: lines[0].update(key="../../escaped")), "is not the key of a cell"),
    "a record twice": (records(lambda lines: lines.append(lines[0])), "is there twice"),
    "a record dropped": (records(lambda lines: lines.pop()), "1 outcomes have no record"),
    "a metric": (records(lambda lines: lines[2]["metrics"].update(accuracy=[1.0, 0.9, 1.0, 40])), 'metric "accuracy"'),
    "a metric that is no number": (
        records(lambda lines: lines[2]["metrics"].update(accuracy=[float("nan"), None, None, 40])),
        'metric "accuracy"',
    ),
    "a flag dropped": (records(lambda lines: [line.pop("flags", None) for line in lines]), 'flag "single-step-wins"'),
    "a flag added": (records(lambda lines: lines[0].update(flags={"noise-wins": "so"})), 'flag "noise-wins"'),
    "a failure with figures": (
        records(lambda lines: lines[2].update(status="failed")),
        'its status is "failed", and it has an outcome',
    ),
    "other data in one record": (
        records(lambda lines: lines[0]["spec"]["dataset"].update(fingerprint="e" * 64)),
        "data set",
    ),
    "an attack without stages": (records(lambda lines: lines[2]["spec"]["condition"].update(stages=[])), "0 stages"),
    "an unknown norm": (stage(norm="l7"), "l7"),
    "a limit that is no number": (stage(eps=float("nan")), "nan"),
    "a limit that was not kept": (stage(eps=0.01), "beyond the limit"),
    "no archive": (text(OUTCOMES, b"PK\x03\x04 nothing"), OUTCOMES),
    "half an archive": (lambda board: os.truncate(board / OUTCOMES, 3000), OUTCOMES),
    "one array": (one_array(LABELS), OUTCOMES),
    "code": (one_array(np.array([print])), OUTCOMES),
    "code inside": (outcomes(lambda arrays: arrays.update(x=np.array([print]))), "no plain number or text"),
    "no outcomes": (lambda board: (board / OUTCOMES).unlink(), OUTCOMES),
    "an outcome dropped": (outcomes(lambda arrays: arrays.popitem()), "is not what its record was made from"),
    "an outcome changed": (
        outcomes(lambda arrays: arrays.update({next(iter(arrays)): np.zeros(9, np.uint8)})),
        "is not what its record was made from",
    ),
    "an array dropped": (array(final=None), "final"),
    "an unknown array": (array(kind=np.array("clean")), 'of kind "clean"'),
    "another size": (array(labels=LABELS[:5]), "labels"),
    "another type": (array(final=LABELS.astype(float)), "final"),
    "another shape": (array(ids=np.arange(40).reshape(2, 20)), "ids"),
    "a class too many": (array(rounded=LABELS + 1), "rounded"),
    "a class below none": (array(targets=np.full(40, -2)), "targets"),
    "a sample twice": (array(ids=np.zeros(40, np.int64)), "twice"),
    "another class": (array(labels=1 - LABELS), "is of class"),
    "infinite passes": (array(forwards=np.full(40, np.inf)), "forwards"),
    "draws of no width": (array(draws=LABELS), "draws"),
    "too many classes": (array(num_classes=np.array(1_000_000)), "1000000 classes"),
    "no note": (lambda board: (board / "board.json").unlink(), "board.json"),
    "a note that is no JSON": (text("board.json", "{"), "board.json"),
    "a note of other things": (text("board.json", '{"grid": "small", "title": "x", "run": "rm"}'), "run"),
    "a figure elsewhere": (figures(json.dumps([{"name": "../outside", **PICTURE}])), "'../outside'"),
    "a figure that is not there": (figures(json.dumps([{"name": "gone", **PICTURE}])), "gone.png"),
    "figures that are none": (figures('[{"path": "/etc/passwd"}]'), "path"),
}


def column(**changed: Any) -> Damage:
    """Other columns, None for one that is dropped."""

    def change(arrays: dict[str, Any]) -> None:
        for name, value in changed.items():
            arrays[name] = value
            if value is None:
                del arrays[name]

    return outcomes(change)


def bomb(board: Path) -> None:
    """Two gigabytes of zeros, as far as the file's list of contents says."""
    with zipfile.ZipFile(board / OUTCOMES, "w") as file:
        file.writestr("ids.npy", b"")
    data = (board / OUTCOMES).read_bytes()
    at = data.index(b"PK\x01\x02") + 24  # where the size of the first member stands in the list of contents
    (board / OUTCOMES).write_bytes(data[:at] + (2**31).to_bytes(4, "little") + data[at + 4 :])


DAMAGE_OF_COLUMNS: dict[str, tuple[Damage, str]] = {
    "a later format": (records(lambda lines: lines[0].update(archive=3)), "archive format 3"),
    "a later schema": (records(lambda lines: lines[0].update(schema_version=99)), "schema 99"),
    "no schema": (records(lambda lines: lines[0].pop("schema_version")), "schema_version"),
    "nothing shared": (records(lambda lines: lines.pop(1)), 'line 5: there is no "dataset 0" before it'),
    "a list": (records(lambda lines: lines.append([1, 2])), "line 11: it is no record"),
    "an unknown field": (records(lambda lines: lines[-1].update(extra=1)), "extra"),
    "a path for a key": (records(lambda lines: lines[-1].update(key="../../escaped")), "is not the key of a cell"),
    "a record twice": (records(lambda lines: lines.append(lines[-1])), "is there twice"),
    "a record dropped": (records(lambda lines: lines.pop()), "3 outcomes for 2 records"),
    "a metric that does not follow": (
        records(lambda lines: lines[-1].update(metrics={"accuracy": [1.0, 0.9, 1.0, 40]})),
        'metric "accuracy"',
    ),
    "a metric left out": (records(lambda lines: lines[-1].update(without=["accuracy"])), 'metric "accuracy"'),
    "a flag dropped": (records(lambda lines: [line.pop("flags", None) for line in lines]), 'flag "single-step-wins"'),
    "a failure with figures": (records(lambda lines: lines[-1].update(status="failed")), "and it has an outcome"),
    "another outcome": (
        records(lambda lines: lines[-1].update(outcome="0" * 20)),
        "is not what its record was made from",
    ),
    "a column changed": (column(final=np.zeros(120, np.uint8)), "is not what its record was made from"),
    "a column dropped": (column(scored=None), "no column scored"),
    "no lengths": (column(samples=None), "no column samples"),
    "a column too long": (column(flat=np.zeros(121, np.bool_)), "the column flat has 121 entries, not 120"),
    "another number of cells": (column(samples=np.array([120])), "1 outcomes for 3 records"),
    "lengths below none": (column(samples=np.array([200, -120, 40])), "below 0"),
    "widths of other cells": (column(**{"draws.width": np.zeros(2, np.int64)}), OUTCOMES),
    "a type that is not exact": (column(final=np.zeros(120)), "a column of int64 is stored as float64"),
    "text": (column(final=np.array(["x"] * 120)), "a column of int64"),
    "code inside": (column(final=np.array([print])), "no plain number or text"),
    "no archive": (text(OUTCOMES, b"PK\x03\x04 nothing"), OUTCOMES),
    "half an archive": (lambda board: os.truncate(board / OUTCOMES, 1500), OUTCOMES),
    "a link": (lambda board: (board / "notes.txt").symlink_to("/etc/passwd"), '"notes.txt" in it is a link'),
    "a pipe": (lambda board: os.mkfifo(board / "pipe"), '"pipe" in it cannot be used: it is no plain file'),
    "a name that hides": (lambda board: (board / "a\u202eb").touch(), "characters that names cannot have"),
    "two names in one": (lambda board: (board / "readme.md").touch(), "one name on some file systems"),
    "a bomb": (bomb, "unfolds to 2,147,483,648 bytes"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_board_of_others_is_refused_in_one_line(
    what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, part = DAMAGE[what]
    refused_in_one_line(folder, "earlier", damage, part, capsys)


@pytest.mark.parametrize("what", DAMAGE_OF_COLUMNS)
def test_a_damaged_board_in_columns_is_refused_in_one_line(
    what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_in_one_line(folder, "theirs", *DAMAGE_OF_COLUMNS[what], capsys)


def refused_in_one_line(
    folder: Path, whose: str, damage: Damage, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    board = folder / whose / BOARD
    damage(board)
    shown = complaint(publish(Store(folder / "runs"), folder / "site", "--from", str(folder / whose)), capsys)
    assert str(board) in shown
    assert part in shown
    assert len(shown) < 1500
    assert not (folder / "site").exists()


def test_a_board_of_the_earlier_format_is_read_as_it_was(folder: Path) -> None:
    earlier, now = (read_archive(folder / name / BOARD) for name in ("earlier", "theirs"))
    assert [record for record, _ in earlier] == [record for record, _ in now]
    assert [found and found.to_bytes() for _, found in earlier] == [found and found.to_bytes() for _, found in now]


def test_a_board_that_is_a_link_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "linked").mkdir()
    (folder / "linked" / "board").symlink_to(folder / "theirs" / BOARD)
    shown = complaint(publish(Store(folder / "runs"), folder / "site", "--from", str(folder / "linked")), capsys, 2)
    assert "is a link, which could lead anywhere" in shown


def test_names_of_others_cannot_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = "x\x1b[2J\n\u202emodel\u2028"
    store = fill(tmp_path / "runs", row(A_MODEL))
    assert publish(fill(tmp_path / "others", row(model(label))), tmp_path / "theirs") == 0
    path = tmp_path / "theirs" / BOARD / RECORDS
    path.write_bytes(path.read_bytes().replace(b'"status":"done"', b'"status":"failed"'))
    capsys.readouterr()
    shown = complaint(publish(store, tmp_path / "site", "--from", str(tmp_path / "theirs")), capsys)
    assert "x\\u001b[2J" in shown
    assert shown.removesuffix("\n").isprintable()


def test_records_with_line_breaks_in_their_texts_are_read_as_they_are(tmp_path: Path) -> None:
    store = fill(tmp_path / "runs", row(model("one\u2028two\x85three\nfour")))
    assert publish(store, tmp_path / "site") == 0
    assert {record.spec.model.label for record, _ in read_archive(tmp_path / "site" / BOARD)} == {
        "one\u2028two\x85three\nfour"
    }


@pytest.mark.parametrize(
    ("other", "target", "part"),
    [
        ("theirs", "theirs", "is read with --from"),
        ("theirs/toys", "theirs", "is read with --from"),
        ("theirs", "theirs/toys", "is a published board itself"),
        ("gone", "site", '"--from'),
        ("runs/boards/toys.json", "site", '"--from'),
        ("runs", "site", "holds no published board"),
    ],
)
def test_directories_that_cannot_be_used(
    other: str, target: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    shown = complaint(publish(Store(folder / "runs"), folder / target, "--from", str(folder / other)), capsys, 2)
    assert part.strip('"') in shown
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_outcomes_are_written_with_the_hash_of_what_is_written(tmp_path: Path) -> None:
    result = replace(attacked(20), linf=np.full(40, 0.05))
    write_archive(tmp_path, [(row(A_MODEL)[2][0].model_copy(update={"outcome_sha256": "0" * 64}), result)])
    ((record, back),) = read_archive(tmp_path)
    assert back is not None
    assert back.linf.tolist() == result.linf.tolist()
    assert record.outcome_sha256 == result.sha256()


def test_archives_need_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from robbench.leaderboards.archive import read_archive, read_note; "
        "at = pathlib.Path(sys.argv[1]); assert len(read_archive(at)) == 3; read_note(at); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder / "theirs" / BOARD)], check=False)
    assert done.returncode == 0
