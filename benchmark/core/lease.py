"""One writer at a time, across processes and machines: a lease that its owner loses by dying.

A lease is a locked file, whose lock the system drops with its owner. Where the file system has no locks (NFS with
``nolock``, Lustre without ``-o flock``), and on Windows, it is a file that names its owner and is touched while the
owner lives.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from robbench.core.errors import StoreError, warn
from robbench.core.extras import posix_module

_fcntl = posix_module("fcntl")
_SEES_OTHERS = os.name != "nt"
"""Whether a process can ask for another one; on Windows that ends it."""

PATIENCE = 10.0
"""Seconds of waiting after which the user is told."""
POLL = 0.1
"""Seconds between two looks at a lease that somebody else holds."""
BEAT = 5.0
"""Seconds after which the owner of a lease file touches it again."""
SILENCE = 60.0
"""Seconds without a touch after which an owner on another machine is taken for dead."""


Release: TypeAlias = Callable[[], None]
"""Gives a lease back."""


class Busy(Exception):
    """Somebody else holds the lease."""


class _NoLocks(Exception):
    """The file system has no locks."""


@contextlib.contextmanager
def leased(path: Path, most: float = math.inf) -> Iterator[None]:
    """Hold a lease alone; whoever has it is waited for.

    Args:
        path: A file that exists while the lease is held.
        most: Seconds to wait.

    Raises:
        Busy: If somebody else has it for longer.
        StoreError: If the file cannot be made.
    """
    release, began, told = None, time.monotonic(), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (release := _alone(path)) is None:
            waited = time.monotonic() - began
            if waited > most:
                raise Busy
            if not told and waited > PATIENCE:
                warn(f"waiting for another robbench, which holds {path}")
                told = True
            time.sleep(POLL)
    except OSError as error:
        raise StoreError(f"cannot lock {path}: {error.strerror or error}; what was finished is kept") from error
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def shared(path: Path, exclusive: bool = False) -> Iterator[None]:
    """Hold a lease together with others or alone, without waiting. Says once if the file system has no locks.

    Args:
        path: A file, which stays.
        exclusive: Whether to hold it alone.

    Raises:
        Busy: If somebody holds it in a way that excludes this.
        OSError: If the file cannot be made.
    """
    with path.open("a") as file:
        try:
            if not _lock(file, exclusive):
                raise Busy
        except _NoLocks as error:
            if _fcntl is not None:
                _tell(str(error))
        else:
            yield
            return
    with _listed(path, exclusive):
        yield


@functools.cache
def _tell(reason: str) -> None:
    warn(
        f"the store's file system has no locks ({reason}); files that name their owner stand in for them, and what a "
        f"machine that died was working on is free after {SILENCE:.0f} s"
    )


# ---------------------------------------------------------------------------------------------------------------- locks


def _lock(file: IO[str], exclusive: bool) -> bool:
    """Lock a file without waiting; False where somebody else has it."""
    if _fcntl is None:
        raise _NoLocks
    try:
        _fcntl.flock(file, (_fcntl.LOCK_EX if exclusive else _fcntl.LOCK_SH) | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _NoLocks(error.strerror or str(error)) from None
    return True


def _alone(path: Path) -> Release | None:
    """Take a lease unless somebody has it; returns what gives it back."""
    try:
        return _locked(path)
    except _NoLocks:
        _drop(path)
        return _owned(path.with_name(f"{path.name}.owner"))


def _locked(path: Path) -> Release | None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a"))
        # Whoever had it has removed the file, and others may have made a new one since it was opened.
        if not (_lock(file, exclusive=True) and _is_at(file, path)):
            return None
        stack.callback(_drop, path)
        return stack.pop_all().close


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


# -------------------------------------------------------------------------------------------------------- without locks


@dataclass(frozen=True)
class _Owner:
    """Who holds a lease.

    Attributes:
        machine: Host name, boot and process name space, in which ``pid`` means something; where nobody can ask for
            a process, something of its own.
        pid: The process.
        started: When it was started, since numbers of processes come again.
        token: Tells leases of one process apart.
    """

    machine: str
    pid: int
    started: str
    token: str

    @classmethod
    def here(cls) -> _Owner:
        return cls(_machine(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex)


@functools.cache
def _machine() -> str:
    facts = [platform.node(), *([] if _SEES_OTHERS else [uuid.uuid4().hex])]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


def _started(pid: int) -> str:
    """When a process was started; empty where there is none, or it is only waited for."""
    if not _SEES_OTHERS:
        return "unknown"
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return "unknown"
        return ""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _owned(path: Path) -> Release | None:
    me = _Owner.here()
    if _created(path, me):
        stack = contextlib.ExitStack()
        stack.enter_context(_touching(path, me))
        return stack.close
    text = _content(path)
    if text is not None and not _lives(path, text):
        _remove(path, text)
    return None


@contextlib.contextmanager
def _listed(path: Path, exclusive: bool) -> Iterator[None]:
    """Hold a lease file beside those of others, unless this or one of them is to be alone."""
    me = _Owner.here()
    own = path.with_name(f"{path.name}.{'alone' if exclusive else 'shared'}.{me.token}")
    _created(own, me)
    with _touching(own, me):
        for other in path.parent.glob(f"{path.name}.*.*"):
            if other != own and other.suffix != ".tmp" and (exclusive or ".alone." in other.name):
                text = _content(other)
                if text is None:
                    continue
                if _lives(other, text):
                    raise Busy
                _remove(other, text)
        yield


def _created(path: Path, owner: _Owner) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _touching(path: Path, owner: _Owner) -> Iterator[None]:
    """Touch an own lease file until it is given back."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _remove(path, json.dumps(asdict(owner)))


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _remove(path: Path, content: str) -> None:
    """Remove a lease file if it still is the one with this content."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with contextlib.suppress(OSError):
        if _content(path) == content:
            path.rename(aside)
            if _content(aside) == content:
                aside.unlink()
            else:
                # Another one has taken it over between the look and the renaming.
                aside.rename(path)


def _lives(path: Path, text: str) -> bool:
    """Whether the owner of a lease file lives; waits for a touch where its process cannot be seen from here."""
    try:
        facts: dict[str, Any] = json.loads(text)
        if facts["machine"] == _machine():
            return bool(facts["started"]) and _started(facts["pid"]) == facts["started"]
    except (ValueError, KeyError, TypeError):
        pass  # It is just being written, or damaged: then nobody touches it.
    before = _state(path)
    until = time.monotonic() + SILENCE
    while time.monotonic() < until:
        time.sleep(min(POLL, SILENCE))
        if _state(path) != before:
            return True
    return False


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
