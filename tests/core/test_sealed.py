from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robbench.core.errors import Damaged, StoreError, unless_damaged
from robbench.core.sealed import (
    SealedDirectory,
    sealed_archive,
    sealed_json,
    unsealed_archive,
    unsealed_json,
    verify_hash,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aä\n\"'😀"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("abcde", min_size=1), PLAIN, max_size=4)


def archive(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(seed)
    np.savez_compressed(buffer, ids=np.arange(7), values=rng.random((2, 3)))
    return buffer.getvalue()


def arrays(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data)) as found:
        return {name: found[name].tolist() for name in found.files}


# --- JSON


@given(OBJECTS)
def test_an_object_survives_and_the_same_object_gives_the_same_text(value: dict[str, Any]) -> None:
    text = sealed_json(value, "cells/a/record.json")
    assert unsealed_json(text.encode(), "cells/a/record.json") == (value, True)
    assert sealed_json(dict(reversed(value.items())), "cells/a/record.json") == text
    assert json.loads(text) == value | {"seal": json.loads(text)["seal"]}


@given(OBJECTS, st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_found_or_changes_nothing(value: dict[str, Any], place: int, change: int) -> None:
    data = bytearray(sealed_json(value, "a").encode())
    data[place % len(data)] ^= change
    try:
        found, sealed = unsealed_json(bytes(data), "a")
    except ValueError:
        return
    # What is taken for a file of an older version has the name of its seal as a key too many, which readers refuse.
    assert found == value if sealed else len(found) == len(value) + 1


@given(OBJECTS, st.integers(0))
def test_an_object_that_is_cut_off_is_found(value: dict[str, Any], length: int) -> None:
    data = sealed_json(value, "a").encode()
    with pytest.raises(ValueError, match="not JSON"):
        unsealed_json(data[: length % (len(data) - 1)], "a")


def test_reindented_json_and_that_of_older_versions_passes() -> None:
    text = json.dumps(json.loads(sealed_json({"a": [1, 2.5]}, "p")), indent=4)
    assert unsealed_json(text.encode(), "p") == ({"a": [1, 2.5]}, True)
    assert unsealed_json(b'{"a": [1, 2.5]}', "p") == ({"a": [1, 2.5]}, False)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 200_000, b'{"a": 1}{"a": 1}'])
def test_what_is_no_object_is_found(data: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        unsealed_json(data, "p")


# --- archives


def test_every_changed_byte_of_an_archive_is_found_or_changes_nothing() -> None:
    data, rng = sealed_archive(archive(), "p"), random.Random(0)
    assert arrays(data) == arrays(archive()), "others read it as ever"
    harmless = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256)
        try:
            found = unsealed_archive(bytes(changed), "p")
        except ValueError:
            continue
        harmless += 1
        assert arrays(found) == arrays(archive())
    assert harmless <= 2, "the length of the seal, without which it is taken for one of an older version"


@pytest.mark.parametrize("length", [0, 1, 21, 22, 65, 66, 67, 88, 100, 300])
def test_an_archive_that_is_cut_off_is_found_unless_that_is_the_seal_alone(length: int) -> None:
    data = sealed_archive(archive(), "p")
    for part in (data[:length], data[length:]):
        try:
            assert arrays(unsealed_archive(part, "p")) == arrays(archive())
        except ValueError:
            continue


def test_checkpoints_are_archives() -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.arange(3)}}, buffer)
    data = sealed_archive(buffer.getvalue(), "p")
    assert unsealed_archive(data, "p") == buffer.getvalue()
    assert torch.load(io.BytesIO(data), weights_only=True)["model"]["w"].tolist() == [0, 1, 2]
    assert unsealed_archive(buffer.getvalue(), "p") == buffer.getvalue(), "one of an older version"


# --- files


def sealed(folder: SealedDirectory, path: Path) -> None:
    if path.suffix == ".json":
        folder.write(path, {"a": 1})
    else:
        folder.write_archive(path, archive())


def read(folder: SealedDirectory, path: Path) -> object:
    return folder.read(path) if path.suffix == ".json" else folder.read_archive(path)


def test_a_link_to_nowhere_is_damage_and_is_written_over(tmp_path: Path) -> None:
    folder, path = SealedDirectory(tmp_path), tmp_path / "x.json"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(Damaged, match="missing"):
        folder.read(path)
    folder.write(path, {"a": 1})
    assert folder.read(path) == {"a": 1}
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["x.json", "x.npz"])
def test_a_file_of_another_key_and_what_is_no_file_is_found(tmp_path: Path, name: str) -> None:
    folder, path, other = SealedDirectory(tmp_path), tmp_path / "cells" / "a" / name, tmp_path / "cells" / "b" / name
    assert read(folder, path) is None
    for place in (path, other):
        sealed(folder, place)
    assert read(folder, path)
    path.write_bytes(other.read_bytes())
    with pytest.raises(Damaged, match="not what was written there"):
        read(folder, path)
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("somebody's")
    with pytest.raises(Damaged, match="no regular file"):
        read(folder, path)
    sealed(folder, path)
    assert read(folder, path)
    assert [file.read_text() for file in path.parent.rglob("inside")] == ["somebody's"]


def test_a_file_in_place_of_a_folder_is_found_and_stays(tmp_path: Path) -> None:
    folder, path = SealedDirectory(tmp_path), tmp_path / "cells" / "a" / "x.json"
    path.parent.parent.mkdir()
    path.parent.write_text("somebody's")
    with pytest.raises(Damaged, match=r"x\.json is damaged: Not a directory"):
        folder.read(path)
    folder.write(path, {"a": 1})
    assert folder.read(path) == {"a": 1}
    assert [file.read_text() for file in path.parent.parent.glob(".*.tmp")] == ["somebody's"]


def into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "not what was written"),
        (lambda path: path.write_bytes(b"weightt"), "not what was written"),
        (lambda path: (path.unlink(), path.mkdir()), "no regular file"),
        (into_a_pipe, "no regular file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "Too many levels of symbolic links"),
    ],
)
def test_a_hash_is_that_of_the_file(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    path, sha = tmp_path / "w", hashlib.sha256(b"weights").hexdigest()
    path.write_bytes(b"weights")
    verify_hash(path, sha)
    verify_hash(path, None)
    assert SealedDirectory(tmp_path).read_hashed(path, sha) == b"weights"
    change(path)
    for check in (lambda: verify_hash(path, sha), lambda: SealedDirectory(tmp_path).read_hashed(path, sha)):
        with pytest.raises(Damaged, match=reason):
            check()


def test_damage_is_told_in_one_line_and_counts_as_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> int:
        raise Damaged(tmp_path / "file", "two\nlines")

    assert unless_damaged(lambda: 3, 0, "it is made again") == 3
    assert unless_damaged(look, 0, "it is made again") == 0
    assert capsys.readouterr().err == f"robbench: {tmp_path / 'file'} is damaged: two lines; it is made again\n"
    with pytest.raises(StoreError, match="robbench run with its grid makes it again"):
        look()
