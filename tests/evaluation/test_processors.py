"""Boards do not depend on the processor: they are made again as other processors add, multiply and share out work."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from archives import PUBLISHED

BOARD, LARGER = "ensembles-digits", "generalization-study-cifar10-fifth"

MAKE = """
import hashlib, json, os, sys, tempfile
from pathlib import Path
import numpy as np
from threadpoolctl import threadpool_info
from robbench.core.registry import Registry
from robbench.evaluation.scoring import measure
from robbench.leaderboards import write_board
from robbench.leaderboards.archive import read_archive, read_note

folder = Path(sys.argv[1]) / sys.argv[2]
cells = read_archive(folder)
figures = [measure(outcome, Registry(installed=False)) for _, outcome in cells if outcome is not None]
made = {"metrics": hashlib.sha256(repr(figures).encode()).hexdigest()}
with tempfile.TemporaryDirectory() as name:
    for path in write_board(Path(name), read_note(folder), cells):
        made[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
blas = [(found["architecture"], found["num_threads"]) for found in threadpool_info() if "architecture" in found]
simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
print(json.dumps({"made": made, "blas": blas, "simd": simd}))
"""

SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])


def made(board: str, **environment: str) -> dict[str, object]:
    command = [sys.executable, "-c", MAKE, str(PUBLISHED), board]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@functools.cache
def here(board: str) -> dict[str, object]:
    return made(board)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels named here are those of x86-64")
@pytest.mark.parametrize(
    ("board", "kernel", "threads"),
    [(BOARD, "Nehalem", "2"), pytest.param(LARGER, "Prescott", "1", marks=pytest.mark.end_to_end)],
)
def test_boards_do_not_depend_on_the_kernel_of_the_linear_algebra_library(
    board: str, kernel: str, threads: str
) -> None:
    there = made(board, OPENBLAS_CORETYPE=kernel, OPENBLAS_NUM_THREADS=threads)
    assert there["blas"] != here(board)["blas"], "the kernel had no effect"
    assert there["made"] == here(board)["made"]


@pytest.mark.skipif(not SIMD, reason="this processor has nothing that could be switched off")
@pytest.mark.parametrize("board", [BOARD, pytest.param(LARGER, marks=pytest.mark.end_to_end)])
def test_boards_do_not_depend_on_vector_instructions(board: str) -> None:
    there = made(board, NPY_DISABLE_CPU_FEATURES=" ".join(SIMD), OMP_NUM_THREADS="1")
    assert there["simd"] == []
    assert there["made"] == here(board)["made"]
