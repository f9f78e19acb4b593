"""Boards at addresses: the same boards, the same checks, and one line for whatever an address can do."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from addresses import Faulty, Told, lying, publish, put
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as REGISTERED
from stores import BOARD, files

from robbench.core.sealed import hash_of
from robbench.results import remote_directory
from robbench.results.store import Store

pytest_plugins = ("addresses",)


# --- the same boards


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_an_address_holds_what_a_directory_holds(scheme: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, site = Store(folder / "runs"), folder / "site"
    address = f"file://{folder}/address/deep" if scheme == "file" else "memory://address/deep"
    before = files(store.root)
    for words in ((), ("--from", folder / "theirs")):
        assert publish(store, site, *words) == publish(store, address, *words) == 0
        found = files(folder / "address/deep") if scheme == "file" else lying("/address/deep", MemoryFileSystem)
        assert found == files(site)
    assert f"published in {address}/{BOARD}" in capsys.readouterr().out
    assert publish(store, folder / "again", "--from", address) == 0
    assert files(folder / "again") == files(site)
    assert publish(store, folder / "third", "--from", f"{address}/{BOARD}/") == 0
    assert files(folder / "third") == files(site)
    assert files(store.root) == before


def test_an_archive_is_an_address(folder: Path) -> None:
    shutil.make_archive(str(folder / "boards"), "zip", folder / "theirs")
    assert publish(Store(folder / "runs"), folder / "site", "--from", f"zip://::file://{folder}/boards.zip") == 0
    assert publish(Store(folder / "runs"), folder / "again", "--from", folder / "theirs") == 0
    assert files(folder / "site") == files(folder / "again")


def test_what_is_the_same_is_not_written_again(folder: Path) -> None:
    assert publish(Store(folder / "runs"), "faulty://site") == 0
    Faulty.happens["pipe_file"] = lambda path, _: pytest.fail(path)
    assert publish(Store(folder / "runs"), "faulty://site") == 0


def test_other_things_at_an_address_stay(folder: Path, told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"README.md": b"mine", "data/x.bin": b"x" * 9, "no name\n": b"", "a/b/board.json": b"{}", "n.txt": b""}
    for name, content in others.items():
        Faulty().pipe_file(f"/site/{name}", content)
    assert publish(Store(folder / "runs"), "faulty://site") == 0
    found = lying("/site")
    assert {name: found[name] for name in others} == others
    assert f"{BOARD}/records.jsonl" in found
    Faulty().pipe_file(f"/site/{BOARD}/thesis.txt", b"years of work")
    capsys.readouterr()
    assert "faulty://site/toys/thesis.txt is no part of" in told(publish(Store(folder / "runs"), "faulty://site"))
    assert lying("/site") == {**found, f"{BOARD}/thesis.txt": b"years of work"}


def test_files_that_a_board_no_longer_has_are_removed(folder: Path) -> None:
    assert publish(Store(folder / "runs"), "faulty://site") == 0
    whole = lying("/site")
    Faulty().pipe_file(f"/site/{BOARD}/figures/old.png", b"old")
    assert publish(Store(folder / "runs"), "faulty://site") == 0
    assert lying("/site") == whole


def test_a_repository_of_hugging_face_gets_one_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    commits = []

    class Api:
        def __init__(self, **options: Any) -> None:
            assert options == {"endpoint": "there", "token": None}

        def create_commit(self, operations: list[Any], **told: Any) -> None:
            commits.append(told)
            for one in operations:
                if isinstance(one, hub.CommitOperationAdd):
                    Faulty().pipe_file(f"/datasets/us/set/{one.path_in_repo}", one.path_or_fileobj)
                else:
                    Faulty().rm_file(f"/datasets/us/set/{one.path_in_repo}")

    class Hub(Faulty):
        protocol, endpoint, token = "hf", "there", None

        def resolve_path(self, path: str) -> SimpleNamespace:
            assert path == "/datasets/us/set/boards"
            return SimpleNamespace(repo_id="us/set", repo_type="dataset", revision="main", path_in_repo="boards")

    monkeypatch.setitem(REGISTERED, "hf", Hub)
    monkeypatch.setattr(hub, "HfApi", Api)
    Faulty().pipe_file(f"/datasets/us/set/boards/{BOARD}/figures/old.png", b"old")
    assert publish(Store(folder / "runs"), "hf://datasets/us/set/boards") == 0
    assert publish(Store(folder / "runs"), folder / "site") == 0
    assert lying("/datasets/us/set/boards") == files(folder / "site")
    wanted = {"repo_id": "us/set", "repo_type": "dataset", "revision": "main", "commit_message": "Publish boards"}
    assert commits == [wanted]


# --- the same checks


@pytest.mark.parametrize("name", ["board.json", "records.jsonl", "outcomes.npz"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-20], lambda data: b"{" * 99])
def test_boards_of_others_are_checked(name: str, damage: Callable[[bytes], bytes], folder: Path, told: Told) -> None:
    put(folder)
    path = f"/theirs/{BOARD}/{name}"
    Faulty().pipe_file(path, damage(Faulty().cat_file(path)))
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert f"faulty://theirs/{BOARD}" in line
    assert not (folder / "site").exists()


NAMES = ["../../evil", "a\\b", "nul", "x.", "Board.json", "\u202e.png", "/".join("abcdefghij"), "a:b"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_are_not_safe_are_refused(name: str, folder: Path, told: Told) -> None:
    put(folder)
    Faulty().pipe_file("/x", b"")
    Faulty.store[f"/theirs/{BOARD}/{name}"] = Faulty.store["/x"]
    told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert not list(folder.parent.rglob("evil"))


@pytest.mark.parametrize("entry", [{"type": "link"}, {"type": "file", "islink": True}, {"type": "other"}])
def test_what_is_no_plain_file_is_refused(entry: dict[str, Any], folder: Path, told: Told) -> None:
    put(folder)
    odd = {"name": f"/theirs/{BOARD}/odd", "size": 0, **entry}
    Faulty.happens["ls"] = lambda path, found: [*found, odd] if path.endswith(BOARD) else found
    assert "no plain file" in told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))


@pytest.mark.parametrize(("name", "limit"), [("MOST_BYTES", 1000), ("MOST_FILES", 5)])
def test_what_is_copied_is_bounded(
    name: str, limit: int, folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder)
    monkeypatch.setattr(remote_directory, name, limit)
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert f"more than {limit:,}" in line


def test_a_file_without_end_is_bounded(folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an address tells no sizes."""
    put(folder)
    monkeypatch.setattr(remote_directory, "MOST_BYTES", 10**6)
    Faulty.happens["ls"] = lambda path, found: [{**entry, "size": None} for entry in found]
    Faulty.happens["open"] = lambda path, stream: io.BytesIO(bytes(2 * 10**6))
    assert "has more than" in told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))


# --- what can happen


def test_a_download_that_is_cut_short_is_told(folder: Path, told: Told) -> None:
    put(folder)
    Faulty.happens["open"] = lambda path, stream: io.BytesIO(b"half") if path.endswith("records.jsonl") else stream
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert "records.jsonl was cut short: 4 of" in line
    assert not (folder / "site").exists()


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError(), KeyError("x"), OSError(5, "no")])
def test_a_connection_that_breaks_is_told(error: Exception, folder: Path, told: Told) -> None:
    put(folder)

    def broken(path: str, stream: object) -> object:
        raise error

    Faulty.happens["open"] = broken
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert "cannot be reached" in line


def test_a_change_while_boards_are_read_is_told(folder: Path, told: Told) -> None:
    put(folder)

    def changing(path: str, stream: object) -> object:
        if path.endswith("outcomes.npz"):
            MemoryFileSystem.pipe_file(Faulty(), f"/theirs/{BOARD}/leaderboard.csv", b"another")
        return stream

    Faulty.happens["open"] = changing
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", "faulty://theirs"))
    assert "somebody else changed" in line
    assert not (folder / "site").exists()


@pytest.mark.parametrize("when", ["before it is written", "while it is written"])
def test_two_that_publish_at_once_are_told(
    when: str, folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(Store(folder / "others"), "faulty://site") == 0
    before = lying("/site")
    other = f"/site/{BOARD}-of-others/records.jsonl"

    def meddle(*_: object) -> None:
        Faulty.happens.clear()
        Faulty().pipe_file(other, b"")

    if when == "while it is written":
        Faulty.happens["pipe_file"] = meddle
    else:

        def hashed(data: bytes) -> str:
            meddle()
            return hash_of(data)

        monkeypatch.setattr("robbench.results.remote_directory.hash_of", hashed)
    told(publish(Store(folder / "runs"), "faulty://site"))
    assert other in Faulty.store
    if when == "before it is written":
        assert lying("/site") == before | {other.removeprefix("/site/"): b""}


def test_publishing_again_mends_what_an_interruption_left(folder: Path, told: Told) -> None:
    put(folder, place="/site")
    count = 0

    def interrupted(path: str, _: object) -> None:
        nonlocal count
        count += 1
        if count == 7:  # outcomes are new, and records those of before
            raise ConnectionResetError("gone")

    Faulty.happens["pipe_file"] = interrupted
    assert "cannot be reached" in told(publish(Store(folder / "runs"), "faulty://site"))
    Faulty.happens.clear()
    told(publish(Store(folder / "others"), folder / "x", "--from", "faulty://site"))
    assert publish(Store(folder / "runs"), "faulty://site") == 0
    assert publish(Store(folder / "runs"), folder / "site") == 0
    assert lying("/site") == files(folder / "site")
