"""Who may use a store at once, and where there can be none."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.execution.jobs import carry_out
from robbench.execution.runner import remaining
from robbench.results.store import Store


def test_runs_share_a_store_and_cleaning_needs_it_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock(), store.lock(), pytest.raises(RequestError, match="in use"), store.lock(exclusive=True):
        pass
    with store.lock(exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(RequestError, match="in use"), store.lock(exclusive):
                pass
    with store.lock(exclusive=True):
        pass


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.lock(exclusive=True):
        raise ZeroDivisionError
    with store.lock(exclusive=True):
        pass


def test_a_store_that_cannot_be_is_refused_and_looking_makes_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(RequestError, match="--out"):
            Store(root).check()
        with pytest.raises(RequestError, match="--out"), Store(root).lock():
            pass
    Store(tmp_path / "new" / "runs").check()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with Store(tmp_path / "new" / "runs").lock():
        assert (tmp_path / "new" / "runs").is_dir()


# --- a full disk in the middle of a run


@pytest.mark.end_to_end
def test_a_full_disk_ends_a_run_with_one_line_and_keeps_what_was_finished(tmp_path: Path) -> None:
    # The costliest comes first: what is left of the first row, before the training of the second, which has no more.
    models = ["", "objective = 'angular'\nrecipe = { train_on = 'train+test' }"]
    plan = tiny.make(tmp_path, models, ["clean", "pgd[steps=1000]@ref"], "epochs = 1", limit=9)
    out = plan.request.out
    first = plan.jobs[0]
    carry_out(plan, first, first.cells[:1], lambda progress: None)
    words = [
        "run",
        "--grid",
        str(tmp_path / "tiny.toml"),
        "--out",
        str(out),
        "--workers",
        "1",
        "--device",
        "cpu",
        "--limit",
        "9",
    ]

    def full() -> None:
        # Records and outcomes are smaller than this, checkpoints are not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "robbench", *words]
    done = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    complaints = done.stderr.strip().splitlines()
    assert complaints[-1].startswith(f"robbench: cannot write {out}")
    assert os.strerror(errno.EFBIG) in complaints[-1]
    assert not any("Traceback" in line for line in complaints)
    assert not list(out.rglob(".*.tmp"))
    store = Store(out)
    left = remaining(plan, store)
    assert sum(len(cells) for _, cells in left) == 2
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/outcome.npz")}
    assert len(kept) == 2
    assert main(words) == 0
    assert not remaining(plan, store)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
