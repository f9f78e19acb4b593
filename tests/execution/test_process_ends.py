"""Processes of a run end with it, and where memory runs out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from hostile import attacks, by_condition, running
from interruptions import alive, descendants
from plugin_files import write

from robbench.execution import local
from robbench.execution.jobs import Progress
from robbench.execution.runner import remaining
from robbench.results.store import Store

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes in /proc"),
    pytest.mark.usefixtures("one_core"),
]


def test_memory_runs_out_where_it_is_taken() -> None:
    code = """
import numpy as np
from robbench.execution import processes
processes.free_memory = lambda: 200 * 2**20
processes._limit_memory()
kept = []
try:
    for _ in range(100):
        kept.append(np.ones(2**20))
except MemoryError:
    print(len(kept))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 15 <= int(done.stdout) <= 30


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.end_to_end
def test_no_process_outlives_its_run_even_where_a_plugin_holds_the_interpreter(tmp_path: Path, number: int) -> None:
    plugin = write(tmp_path / "hostile.py", attacks())
    grid = write(tmp_path / "grid.toml", tiny.grid_text(conditions=["sleeps@ref"], recipe="epochs = 1"))
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "9", "--plugin", str(plugin)]
    process = subprocess.Popen(
        [sys.executable, "-m", "robbench", *words, "--workers", "1"],
        stderr=subprocess.PIPE,
        # A shell has what it starts in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        until = time.monotonic() + 300
        while not (mine := [pid for pid in descendants(process.pid) if _blocks_signals(pid)]):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        everybody = [*descendants(process.pid)]
        assert {*running("sleep 98764")} <= {*everybody}
        process.send_signal(number)
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -number), complaints
    assert b"Traceback" not in complaints
    while any(alive(pid) for pid in (*everybody, *mine)):
        assert time.monotonic() < until + 120, "a process goes on after its run has ended"
        time.sleep(0.05)


def _blocks_signals(pid: int) -> bool:
    try:
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    except (OSError, StopIteration):
        return False
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1 == 1


def test_a_worker_that_dies_costs_one_cell(tmp_path: Path) -> None:
    """As where the system ends it for want of memory."""
    plan = tiny.make(tmp_path, conditions=["clean", "pgd[steps=2000]@ref", "fgsm@ref"], limit=20)
    store = Store(plan.request.out)
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.activity.startswith("pgd") and progress.finished is None and progress.of == 0:
            for pid in descendants(os.getpid()):
                for child in descendants(pid):
                    os.kill(child, signal.SIGKILL)

    local.run_locally(plan, remaining(plan, store), 1, tell)
    found = by_condition([event.finished for event in told if event.finished is not None])
    assert {label: record.status for label, record in found.items()} == {
        "clean": "done",
        "pgd[steps=2000]@0.1": "failed",
        "fgsm@0.1": "done",
    }
    assert "SIGKILL" in (found["pgd[steps=2000]@0.1"].reason or "")
