"""Where results come from: versions, machine, commit. Recorded with every result, part of no key."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import robbench
from robbench.core.atomic_io import digest_files

LIBRARIES = (
    "robbench",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "imbalanced-learn",
    "pytorch-metric-learning",
    "adversarial-robustness-toolbox",
)


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of some libraries, those that results depend on where none are named."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that robbench runs from, ``+`` appended where it was changed; None outside of one."""
    folder = Path(robbench.__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head[:12]}{'+' if changed else ''}"


@functools.cache
def source_digest() -> str:
    """A hash of robbench's own source, which tells versions apart where there is no commit to name."""
    return digest_files(_code())


def _code() -> list[Path]:
    names = ("", "attacks", "defenses", "leaderboards", "models")
    packages = [robbench if not name else __import__(f"robbench.{name}", fromlist=["x"]) for name in names]
    files = {path for package in packages for folder in package.__path__ for path in Path(folder).rglob("*")}
    kinds = (".py", ".toml", ".jinja", ".css", ".js")
    return sorted(path for path in files if path.suffix in kinds and "published" not in path.parts)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def provenance(device: str) -> dict[str, Any]:
    """The facts that are recorded with a result."""
    import torch

    return {
        "versions": versions(),
        "commit": commit(),
        "source": source_digest(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "machine": platform.machine(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "platform": f"{sys.platform} {platform.release()}",
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
