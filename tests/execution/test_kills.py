"""Runs that are killed at any moment, that run beside each other, and whose disk is full."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from interruptions import await_end, descendants, finished_cells, repeatable, trained_models

from robbench.cli.main import main

SLOW = pytest.mark.slow
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for worker processes in /proc")

MODELS = ("objective = 'angular'", "defense = 'fgm'")
CONDITIONS = ("clean", "perturbation", "fgsm@ref")

# Writing takes long enough to be killed in the midst of it, and tells what was written.
SLOW_WRITES = """
import os, pathlib, time
flush, rename = os.fsync, pathlib.Path.replace

def fsync(descriptor):
    flush(descriptor)
    time.sleep(float(os.environ.get("SLOW_WRITES", "0")))

def replace(self, target):
    done = rename(self, target)
    with open(os.environ["WRITTEN"], "a") as log:
        log.write(f"{target}\\n")
    return done

os.fsync, pathlib.Path.replace = fsync, replace
"""


class Runs:
    """Runs of one grid into one store, whose writes are slow and noted."""

    def __init__(self, folder: Path, out: str, seeds: int, workers: int) -> None:
        self.folder, self.out, self.workers = folder, folder / out, workers
        self.written = folder / f"{out}.written"
        self.grid = folder / "tiny.toml"
        if not self.grid.is_file():
            (folder / "shim").mkdir()
            (folder / "shim" / "sitecustomize.py").write_text(SLOW_WRITES)
            dataset = "digits[classes=8|3|9,train_fraction=0.3]"
            text = tiny.grid_text(MODELS, CONDITIONS, dataset=dataset, seeds=range(seeds))
            self.grid.write_text(text, encoding="utf-8")

    def start(self, delay: float = 0) -> subprocess.Popen[bytes]:
        words = ["run", "--grid", str(self.grid), "--out", str(self.out), "--limit", "20", "--device", "cpu"]
        path = os.pathsep.join([str(self.folder / "shim"), *sys.path])
        return subprocess.Popen(
            [sys.executable, "-m", "robbench", *words, "--workers", str(self.workers)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "SLOW_WRITES": str(delay), "WRITTEN": str(self.written)},
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[bytes]) -> str:
        _, complaints = process.communicate(timeout=1200)
        assert process.returncode == 0, complaints.decode()
        return complaints.decode()

    def done(self) -> dict[str, tuple[int, int]]:
        return finished_cells(self.out) | trained_models(self.out)

    def unfinished(self) -> set[Path]:
        """What is being written, and what those left that were killed."""
        places = ("cells/*/.*.tmp", "models/*/.*.tmp", "leaderboards/**/.*.tmp", "boards/.*.tmp", ".*.tmp")
        return {path for place in places for path in self.out.glob(place)}


def kill(process: subprocess.Popen[bytes], group: bool) -> None:
    """Kill a run, alone or with its workers."""
    workers = list(descendants(process.pid))
    with process:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
    await_end(workers)


def kill_often(folder: Path, kills: int, seeds: int, longest: float) -> Counter[str]:
    """Kill runs at random moments, half of them while a file is written, and compare what comes of it in the end."""
    draw, hits, tally = random.Random(kills), 0, Counter[str]()
    whole = Runs(folder, "whole", seeds, 2)
    whole.finish(whole.start())
    while hits < kills:
        parts = Runs(folder, f"parts{tally['stores']}", seeds, 2)
        done: dict[str, tuple[int, int]] = {}
        while hits < kills:
            writing, group = hits % 2 == 1, draw.random() < 0.5
            process = parts.start(draw.uniform(0.05, 0.4) if writing else 0)
            left, until = parts.unfinished(), time.monotonic() + draw.uniform(0.5, longest)
            # In the midst of a write: any that begins after the moment that was drawn.
            while process.poll() is None and (
                time.monotonic() < until or (writing and parts.unfinished() <= left and time.monotonic() < until + 60)
            ):
                time.sleep(0.002)
            if process.poll() is not None:
                parts.finish(process)
                break
            kill(process, group)
            tally["otherwise" if parts.unfinished() <= left else "while writing"] += 1
            hits += 1
            print(f"kill {hits}: {tally}")
            now = parts.done()
            assert done.items() <= now.items(), "something that was finished was done twice"
            done = now
        parts.finish(parts.start())
        tally["stores"] += 1
        assert done.items() <= parts.done().items()
        assert main(["gc", "--out", str(parts.out)]) == 0
        hidden = [path for path in parts.out.rglob(".*") if path.is_file() and path.name != ".lock"]
        assert not hidden, "unfinished files"
        assert repeatable(parts.out) == repeatable(whole.out)
        shutil.rmtree(parts.out)
    return tally


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    assert kill_often(tmp_path, kills=3, seeds=1, longest=6)["while writing"] >= 1


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    kills = int(os.environ.get("ROBBENCH_KILLS", "50"))
    tally = kill_often(tmp_path, kills=kills, seeds=3, longest=20)
    print(tally)
    assert tally["while writing"] >= kills // 3


@pytest.mark.slow
def test_two_runs_of_a_grid_at_once_share_the_work(tmp_path: Path) -> None:
    whole, both = Runs(tmp_path, "whole", 1, 1), Runs(tmp_path, "both", 1, 1)
    processes = [both.start(0.02), both.start(0.02), whole.start()]
    for process in processes:
        both.finish(process)
    counts = Counter(both.written.read_text().splitlines())
    once = {path: count for path, count in counts.items() if Path(path).name in ("weights.safetensors", "outcome.npz")}
    assert len(once) == 2 + 6
    assert set(once.values()) == {1}, "what one has done the other does not do again"
    assert repeatable(both.out) == repeatable(whole.out)
    assert not list(both.out.rglob(".*.lock*"))


# --- a full disk


@pytest.mark.parametrize("call", ["write", *(pytest.param(name, marks=SLOW) for name in ("open", "fsync", "replace"))])
@pytest.mark.end_to_end
def test_a_disk_that_fills_up_anywhere_is_one_line_and_work_goes_on_from_there(
    tmp_path: Path, call: str, capsys: pytest.CaptureFixture[str], one_core: None
) -> None:
    plan = tiny.make(tmp_path, ["", "defense = 'fgm'"], ["clean", "fgsm@ref"], "epochs = 1", limit=20)
    out = plan.request.out
    words = [
        "run",
        "--grid",
        str(tmp_path / "tiny.toml"),
        "--out",
        str(out),
        "--limit",
        "20",
        "--workers",
        "1",
        "--device=cpu",
    ]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for room in (2, 9):
        with pytest.MonkeyPatch.context() as patch:
            fill_up(patch, call, room, full)
            assert main(words) == 1
        torch.set_num_threads(1)
        complaints = capsys.readouterr().err.splitlines()
        assert len(complaints) == 1
        assert complaints[0].startswith("robbench: ")
        assert "No space left on device" in complaints[0]
        assert not list(out.rglob(".*.tmp"))
    assert main(words) == 0
    torch.set_num_threads(1)
    assert main(words) == 0
    assert "Nothing to do" in capsys.readouterr().out


def fill_up(patch: pytest.MonkeyPatch, call: str, room: int, full: OSError) -> None:
    """Let the disk be full from some call on that writes a temporary file."""
    left = itertools.count(-room)
    if call == "fsync":
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            if next(left) >= 0:
                raise full
            flush(descriptor)

        patch.setattr(os, "fsync", fsync)
        return
    name = "open" if call == "write" else call
    before = getattr(Path, name)

    def method(self: Path, *words: object, **options: object) -> object:
        if self.name.endswith(".tmp") and next(left) >= 0:
            if call == "write":
                # Half of it still fits.
                with before(self, "wb") as file:
                    file.write(b"half")
            raise full
        return before(self, *words, **options)

    patch.setattr(Path, name, method)
