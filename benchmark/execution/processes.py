"""Processes of a run: started from one that has torch loaded and no plugin, limited in memory, ended whole.

Nothing is started by forking the process that plans, where plugins were loaded, and none of these outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from robbench.core.device import visible_to
from robbench.core.errors import StoreError, plain_warnings
from robbench.core.extras import posix_module

_fcntl, _resource = posix_module("fcntl"), posix_module("resource")
_LINUX = sys.platform == "linux" and _fcntl is not None

# A fork of a process that has torch loaded starts at once; elsewhere than on Linux, libraries do not bear that.
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _LINUX else "spawn")
_LOADED = ["robbench.execution.preloaded"]
"""What is loaded before a process is forked."""
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Ends a process at once; on Windows every signal does."""
_SHARE = 0.9
"""Share of the memory that is free at its start which a process may take."""
_PATIENCE = 5.0
"""Seconds for a process that is killed to be gone."""
_NO_WORD = 255
"""Status of a process whose end nobody can tell, since the one that it was forked from is gone; it may go on."""
_BECOME_REAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: orphans of processes below come to this one."""
_WAITS = (0.0, 0.1, 1.0, 5.0)
"""Seconds before each attempt to start a process: the one that it is forked from may have been killed."""


def prepare() -> None:
    """Start loading what all processes need, while other things are done."""
    if _LINUX:
        from multiprocessing import forkserver

        _CONTEXT.set_forkserver_preload(_LOADED)
        forkserver.ensure_running()


@dataclass(frozen=True)
class Child:
    """A process with the parent's end of the pipe to it.

    Attributes:
        process: The process.
        connection: The pipe.
        apart: Whether it runs code of plugins, below a process that ends with it all that it started.
    """

    process: BaseProcess
    connection: Connection
    apart: bool

    @classmethod
    def start(
        cls, target: Callable[..., None], *arguments: Any, device: str, apart: bool, number: int | None = None
    ) -> Child:
        """Start a process that calls ``target`` with its end of the pipe and the arguments.

        Args:
            target: A function at the top level of a module.
            *arguments: What it is called with.
            device: Device type that it computes on.
            apart: Whether it runs code of plugins.
            number: The only CUDA device that it sees; None for all.

        Raises:
            StoreError: If the system starts no process.
        """
        ours, theirs = multiprocessing.Pipe()
        given = (target, theirs, arguments, device, apart, {**os.environ, **visible_to(number)})
        with theirs, _no_main_module():
            for wait in _WAITS:
                time.sleep(wait)
                process = _CONTEXT.Process(target=_begin, args=given)
                try:
                    process.start()
                    return cls(process, ours, apart)
                except (OSError, EOFError) as error:
                    reason = str(error) or "its server was killed"
        ours.close()
        raise StoreError(f"cannot start a process: {reason}; what was finished is kept, run again to go on")

    @property
    def unknown(self) -> bool:
        """Whether nobody can tell how it ended, or whether it has: the process that it was forked from is gone."""
        return self.process.exitcode == _NO_WORD

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self.process.pid is not None
        return self.process.pid

    def end(self) -> None:
        """Kill the process and all that it started."""
        pid = self.pid
        if self.process.exitcode in (None, _NO_WORD):
            below = list(_descendants(pid))
            _kill(below)
            if self.apart and below:
                self.process.join(_PATIENCE)  # it ends what was started meanwhile
            _kill([pid])
        if self.apart and hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(pid, _KILL)
        self.process.join(_PATIENCE)
        self.connection.close()

    def death(self) -> str:
        """How the process ended, for a record; ends it if it goes on."""
        self.process.join(1)
        code = self.process.exitcode
        self.end()
        if code is None:
            return "crash: the process closed its connection"
        if code == _NO_WORD:
            return "crash: the process ended with status 255, or ended the one that starts the others"
        if code >= 0:
            return f"crash: the process ended with status {code}"
        if -code == _KILL:
            return "crash: the process was killed (SIGKILL), as the system does where memory runs out"
        return f"crash: the process ended with {signal.Signals(-code).name}"


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep a new process from importing the script that was started, which need not expect it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(
    target: Callable[..., None],
    connection: Connection,
    arguments: tuple[Any, ...],
    device: str,
    apart: bool,
    environment: dict[str, str],
) -> None:
    # What was loaded before the fork is no garbage: looking for some there takes time, and copies its pages.
    gc.freeze()
    # Ctrl-C reaches every process of a terminal; the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if apart and hasattr(os, "setsid"):
        os.setsid()
        _keep_whole(connection)
    _end_with_parent()
    # Processes of a plugin start as they do in any program, not as this one did, where its module is not known.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    # That of the process that this one was forked from may be older.
    os.environ.clear()
    os.environ.update(environment)
    # Standard output is the parent's: what a library or a plugin prints is no part of it.
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    if device == "cpu":
        _limit_memory()
    with plain_warnings():
        target(connection, *arguments)


def _keep_whole(connection: Connection) -> None:
    """Go on in a child of this process, which ends as its child does, with all that the child started.

    Processes that a plugin leaves behind come to this one, whatever their session; a plugin that kills this one on
    purpose gets around that. Only Linux has it; elsewhere they can go on where a plugin's process crashes.
    """
    if not _LINUX:
        return
    ctypes.CDLL(None).prctl(_BECOME_REAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        return
    connection.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = status = 0
    while pid != child:
        pid, status = os.waitpid(-1, 0)
    with contextlib.suppress(ChildProcessError):
        while below := list(_descendants(os.getpid())):
            _kill(below)
            os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _resource.setrlimit(_resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os._exit(code)


def _end_with_parent() -> None:
    """A process whose parent was killed must not go on writing beside the run that resumes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if _LINUX:
        # The kernel kills when the parent's end of the pipe closes, even while a plugin holds the interpreter.
        _fcntl.fcntl(parent.sentinel, _fcntl.F_SETSIG, _KILL)
        _fcntl.fcntl(parent.sentinel, _fcntl.F_SETOWN, os.getpid())
        flags = _fcntl.fcntl(parent.sentinel, _fcntl.F_GETFL)
        _fcntl.fcntl(parent.sentinel, _fcntl.F_SETFL, flags | os.O_ASYNC)
    # It may have been killed before.
    threading.Thread(target=_await_end, args=(parent.sentinel,), daemon=True).start()


def _await_end(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _limit_memory() -> None:
    """Have a process that takes all memory fail by itself, before the system kills another one."""
    # Where the system has to kill one after all, it is this one and not the parent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    free, taken = free_memory(), _status_bytes("/proc/self/status", "VmData")
    if _resource is not None and free is not None and taken is not None:
        most = taken + int(_SHARE * free)
        _, hard = _resource.getrlimit(_resource.RLIMIT_DATA)
        most = most if hard == _resource.RLIM_INFINITY else min(most, hard)
        _resource.setrlimit(_resource.RLIMIT_DATA, (most, most))


def free_memory() -> int | None:
    """Bytes of memory that can still be taken here; None where that is not known."""
    free = _status_bytes("/proc/meminfo", "MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        most, taken = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        # Pages of files are given up where memory is needed.
        left = max(0, most - taken + int(counts["file"]))
    except (OSError, ValueError, KeyError):
        return free
    return left if free is None else min(free, left)


def _status_bytes(path: str, name: str) -> int | None:
    """A figure in kB of a file in /proc, in bytes."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, _KILL)


def _descendants(pid: int) -> Iterator[int]:
    """Processes below one, where the system tells."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text(encoding="ascii").split()]
        except OSError:
            continue
        for child in children:
            yield from _descendants(child)
            yield child
