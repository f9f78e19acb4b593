from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from interruptions import await_end, descendants, finished_cells, repeatable, trained_models

from robbench.cli.main import main

MODELS = ("objective = 'angular'", "defense = 'fgm'")
CONDITIONS = ("clean", "perturbation", "fgsm@ref", "pgd[steps=3]@ref")

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for worker processes in /proc")


def start(grid: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["run", "--grid", str(grid), "--out", str(out), "--limit", "30", "--workers", "2", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "robbench", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints.decode()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a run, not its workers; they must end by themselves."""
    workers = list(descendants(process.pid))
    with process:
        process.send_signal(signal.SIGKILL)
    await_end(workers)


def all_files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def carry_on(grid: Path, out: Path, moments: list[Callable[[], bool]]) -> int:
    """Start a run, kill it at each of some moments and start it again, until it is done; returns how many hit."""
    done: dict[str, tuple[int, int]] = {}
    hits = 0
    for moment in moments:
        process = start(grid, out)
        while process.poll() is None and not moment():
            time.sleep(0.005)
        if process.poll() is not None:
            finish(process)
            break
        kill(process)
        hits += 1
        assert not any(out.glob("leaderboards/*/.*")), "a board is written whole or not at all"
        now = finished_cells(out) | trained_models(out)
        assert done.items() <= now.items(), "something that was finished was done twice"
        done = now
    finish(start(grid, out))
    assert done.items() <= (finished_cells(out) | trained_models(out)).items()
    return hits


def compare(grid: Path, whole: Path, parts: Path) -> None:
    assert repeatable(parts) == repeatable(whole)
    assert len(finished_cells(whole)) > 0
    assert main(["gc", "--out", str(parts)]) == 0
    assert all_files(parts) == all_files(whole)
    before = finished_cells(parts)
    finish(start(grid, parts))
    assert finished_cells(parts) == before
    assert repeatable(parts) == repeatable(whole)


@pytest.mark.end_to_end
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    grid, whole, parts = tmp_path / "tiny.toml", tmp_path / "whole", tmp_path / "parts"
    grid.write_text(tiny.grid_text(MODELS, CONDITIONS, dataset="digits[train_fraction=0.3]"), encoding="utf-8")
    undisturbed = start(grid, whole)
    moments: list[Callable[[], bool]] = [
        lambda: any(parts.glob("models/*/checkpoint.pt")),
        lambda: any(parts.glob("cells/*/record.json")),
        lambda: len(list(parts.glob("cells/*/record.json"))) >= 4,
    ]
    with undisturbed:
        try:
            assert carry_on(grid, parts, moments) == 3
            finish(undisturbed)
        finally:
            undisturbed.kill()
    compare(grid, whole, parts)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    grid, whole, parts = tmp_path / "tiny.toml", tmp_path / "whole", tmp_path / "parts"
    text = tiny.grid_text(MODELS, CONDITIONS, recipe="epochs = 6", seeds=[0, 1, 2], dataset="digits")
    grid.write_text(text, encoding="utf-8")
    finish(start(grid, whole))
    draw = random.Random(0)

    def later(seconds: float) -> Callable[[], bool]:
        first: list[float] = []

        def passed() -> bool:
            first.append(time.monotonic())
            return first[-1] - first[0] > seconds

        return passed

    def further(steps: int) -> Callable[[], bool]:
        first: list[int] = []

        def reached() -> bool:
            first.append(len(list(parts.glob("*/*/*.json"))))
            return first[-1] - first[0] > steps

        return reached

    # Half of them while processes start, half in the midst of work.
    pairs = [(later(draw.uniform(0.5, 5)), further(draw.randrange(3))) for _ in range(5)]
    assert carry_on(grid, parts, [moment for pair in pairs for moment in pair]) == 10
    compare(grid, whole, parts)


@pytest.mark.slow
def test_an_interrupt_ends_a_run_with_130_and_keeps_what_was_finished(tmp_path: Path) -> None:
    grid, out = tmp_path / "tiny.toml", tmp_path / "runs"
    grid.write_text(tiny.grid_text(MODELS, CONDITIONS, recipe="epochs = 50"), encoding="utf-8")
    process = start(grid, out)
    while not any(out.glob("models/*/checkpoint.pt")) and process.poll() is None:
        time.sleep(0.01)
    workers = list(descendants(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints.decode()
    assert complaints.decode().strip().splitlines()[-1].startswith("robbench: interrupted")
    assert "Traceback" not in complaints.decode()
    assert any(out.glob("models/*/checkpoint.pt"))
    await_end(workers)
