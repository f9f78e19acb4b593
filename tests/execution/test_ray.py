"""Runs on a ray cluster: two machines of one core each on this one, without files in common but those that travel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from interruptions import finished_cells, repeatable, trained_models

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="binds a run to one core"),
]

MODELS = ("name = 'plain'", "defense = 'fgm'", "name = 'warm'\nobjective = 'angular'\nstart = 'plain'")
CONDITIONS = ("clean", "perturbation", "fgsm@ref", "pgd[steps=3]@ref", "transfer@ref")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    machine = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    made = utils.Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    made.second = made.add_node(**machine)
    yield made
    made.shutdown()


def start(grid: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = ["run", "--grid", str(grid), "--out", str(out), "--limit", "20", "--device", "cpu", "--quiet", *words]
    # One core, as the machines of the cluster have: how many threads there were is part of what a board says.
    own = min(os.sched_getaffinity(0))
    return subprocess.Popen(
        [sys.executable, "-m", "robbench", *command],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {own}),
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, complaints = process.communicate(timeout=1500)
    assert process.returncode == 0, complaints.decode()


def test_machines_that_are_lost_change_nothing(tmp_path: Path, cluster: Any) -> None:
    """One is lost, then the process that drives the run; boards are those of a run on this machine alone."""
    grid = tmp_path / "tiny.toml"
    grid.write_text(tiny.grid_text(MODELS, CONDITIONS), encoding="utf-8")
    local, remote = tmp_path / "local", tmp_path / "remote"
    finish(start(grid, local, "--workers", "1"))
    words = ("--executor", "ray", "--ray-address", cluster.address)
    process = start(grid, remote, *words)
    moments = [("models/*/model.json", 1), ("cells/*/record.json", 4)]
    done: dict[str, tuple[int, int]] = {}
    for pattern, count in moments:
        while process.poll() is None and len(list(remote.glob(pattern))) < count:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1].decode()
        if count == 1:
            cluster.remove_node(cluster.second, allow_graceful=False)
        else:
            process.kill()
            process.communicate()
        done |= finished_cells(remote) | trained_models(remote)
    finish(start(grid, remote, *words))
    assert done.items() <= (finished_cells(remote) | trained_models(remote)).items(), "something was done twice"
    assert repeatable(remote) == repeatable(local)
