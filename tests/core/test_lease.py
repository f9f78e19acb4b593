from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from robbench.core import lease
from robbench.core.errors import StoreError
from robbench.core.lease import Busy, leased, shared


def no_locks(file: object, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=["locks", "no locks", "windows"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file system with locks, one without, and a system that has neither locks nor a way to ask for processes."""
    lease._tell.cache_clear()
    lease._machine.cache_clear()
    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    if request.param == "windows":
        for name, value in {"_fcntl": None, "_SEES_OTHERS": False, "SILENCE": 3.0, "BEAT": 0.05}.items():
            monkeypatch.setattr(lease, name, value)
    yield request.param
    lease._tell.cache_clear()
    lease._machine.cache_clear()


HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from robbench.core import lease
from robbench.core.lease import leased, shared

if sys.argv[2] == "no locks":
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock = flock
if sys.argv[2] == "windows":
    lease._fcntl, lease._SEES_OTHERS, lease.BEAT = None, False, 0.05
hold = {"leased": leased, "shared": shared, "alone": lambda path: shared(path, exclusive=True)}[sys.argv[3]]
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, file_system: str, how: str = "leased") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLDER, str(path), file_system, how]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_only_one_at_a_time_has_a_lease(tmp_path: Path, file_system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL", 0.001)
    path, counter = tmp_path / "deep" / ".key.lock", tmp_path / "counter"
    counter.write_text("0")

    def count(_: int) -> None:
        with leased(path):
            before = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(before + 1))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(count, range(60)))
    assert counter.read_text() == "60"
    assert not list(path.parent.iterdir()), "nothing is left"


def test_the_dead_lose_their_lease(tmp_path: Path, file_system: str) -> None:
    path = tmp_path / ".key.lock"
    with holder(path, file_system) as process:
        free = threading.Event()

        def wait() -> None:
            with leased(path):
                free.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not free.wait(0.5)
        process.send_signal(signal.SIGKILL)
        assert free.wait(60)
        waiting.join()


def test_a_lease_is_given_back_after_an_error(tmp_path: Path, file_system: str) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), leased(tmp_path / ".key.lock"):
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_runs_share_and_one_can_have_it_alone(tmp_path: Path, file_system: str) -> None:
    path = tmp_path / ".lock"
    with shared(path), shared(path), pytest.raises(Busy), shared(path, exclusive=True):
        pass
    with shared(path, exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(Busy), shared(path, exclusive):
                pass
    with shared(path, exclusive=True):
        pass
    assert [found.name for found in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_the_dead_do_not_keep_others_from_the_store(tmp_path: Path, file_system: str, how: str) -> None:
    path = tmp_path / ".lock"
    with holder(path, file_system, how) as process:
        with pytest.raises(Busy), shared(path, exclusive=True):
            pass
        process.kill()
    with shared(path, exclusive=True), pytest.raises(Busy), shared(path):
        pass


def test_the_reason_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lease._tell.cache_clear()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with shared(tmp_path / ".lock"):
            pass
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "has no locks (No locks available)" in shown
    lease._tell.cache_clear()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_every_way_to_have_no_locks_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with leased(tmp_path / ".key.lock"):
        assert [path.name for path in tmp_path.iterdir()] == [".key.lock.owner"]


def owner(**changed: object) -> str:
    here = vars(lease._Owner.here())
    return json.dumps({**here, **changed})


@pytest.mark.parametrize(
    "text",
    [
        owner(pid=2**22 + 1),
        owner(started="1"),  # the number of the process came again
        owner(machine="another"),
        "",
        "{",
        "[]",
        "null",
        "\x00" * 50,
    ],
    ids=["gone", "came again", "another machine", "empty", "cut", "list", "null", "zeros"],
)
def test_lease_files_of_the_dead_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lease, "SILENCE", 0.3)
    path = tmp_path / ".key.lock"
    (tmp_path / ".key.lock.owner").write_text(text)
    with leased(path, most=60):
        pass
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_machine_that_goes_on_touching_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    path = tmp_path / ".key.lock.owner"
    before = lease._machine
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    held = lease._owned(path)
    assert held is not None
    monkeypatch.setattr(lease, "_machine", before)
    for _ in range(3):
        assert lease._owned(path) is None
    held()
    taken = lease._owned(path)
    assert taken is not None
    taken()


def test_who_lost_a_lease_leaves_the_new_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / ".key.lock.owner"
    first = lease._owned(path)
    path.unlink()
    second = lease._owned(path)
    assert first is not None
    assert second is not None
    first()
    assert path.exists()
    second()
    assert not path.exists()


def test_waiting_has_an_end_where_one_is_set(tmp_path: Path, file_system: str) -> None:
    path = tmp_path / ".key.lock"
    with leased(path):
        with pytest.raises(Busy), leased(path, 0.2):
            pass
        assert list(tmp_path.iterdir()), "whoever has it keeps it"
    with leased(path, 0.2):
        pass
    assert not list(tmp_path.iterdir())


def test_long_waiting_is_told(
    tmp_path: Path, file_system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.1)
    path = tmp_path / ".key.lock"
    with leased(path), pytest.raises(Busy), leased(path, most=0.5):
        pass
    shown = capsys.readouterr().err
    assert shown.splitlines() == [f"robbench: waiting for another robbench, which holds {path}"]


def test_where_nothing_can_be_written_the_reason_is_named(tmp_path: Path, file_system: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"^cannot lock .*: (File exists|Not a directory); what was finished is kept$"),
        leased(tmp_path / "file" / ".key.lock"),
    ):
        pass
