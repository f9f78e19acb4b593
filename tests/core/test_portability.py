"""What differs between systems, as far as one of them can show it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from robbench.core import atomic_io
from robbench.core.atomic_io import file_name, replace_file, write_atomically
from robbench.core.errors import StoreError
from robbench.core.safe_text import portable
from robbench.core.untrusted_files import check_folder

# Modules that use them on this system are loaded first: where they are missing, these have others.
WITHOUT_POSIX = """
import asyncio, getpass, multiprocessing.managers, os, shutil, signal, subprocess, sys, tempfile

for name in ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for module, names in {
    os: "fork forkpty setsid setpgid killpg getpgid getuid geteuid getgid statvfs sched_getaffinity nice mkfifo "
    "O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_CLOEXEC chown ctermid getloadavg",
    signal: "SIGKILL SIGSTOP SIGCONT SIGHUP SIGQUIT SIGPIPE SIGUSR1 SIGUSR2 SIGALRM SIGCHLD alarm",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
"""Loaded by every process of a test."""

LOOK = """
import sys
from robbench.cli.main import main
for words in (["--version"], ["list"], ["list", "attack"], ["plan", "--grid", "smoke", "--out", sys.argv[1]]):
    assert main(words) == 0, words
"""


def without_posix(folder: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code, and all processes that it starts, without what only POSIX systems have."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WITHOUT_POSIX, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "USER": "somebody"}
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def test_commands_that_look_need_nothing_of_posix(tmp_path: Path) -> None:
    done = without_posix(tmp_path, LOOK, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "cross-entropy · no defense" in done.stdout


@pytest.mark.end_to_end
def test_a_run_with_a_plugin_needs_nothing_of_posix(tmp_path: Path) -> None:
    from plugin_files import GRAY, write

    plugin = write(tmp_path / "gray.py", GRAY)
    grid = write(tmp_path / "grid.toml", tiny.grid_text(conditions=["clean", "fgsm@ref", "gray@ref"]))
    code = "import sys; from robbench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["run", "--grid", grid, "--out", tmp_path / "runs", "--plugin", plugin, "--limit", 20, "--workers", 2]
    done = without_posix(tmp_path, code, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "runs" / "leaderboards" / "index.html").is_file()
    assert not list((tmp_path / "runs").rglob(".*.lock*.*")), "no lease is left"


ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_that_other_systems_run_need_nothing_of_posix() -> None:
    found = re.search(r"^fast=\((.*?)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    assert "/^fast=(/,/)$/p" in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    for name in found[1].split():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"fcntl|mkfifo|symlink_to|os\.(fork|kill|link)|SIGKILL|/proc/|/dev/", text), name


# --- names


@pytest.mark.parametrize(
    "name",
    ["con", "NUL", "nul.txt", "Com1", "lpt9.tar.gz", "COM²", "aux .b", "board.", "board ", ".board", "a:b"],
)
def test_names_that_windows_has_no_files_of_get_others(name: str) -> None:
    made = file_name(name)
    assert portable(made)
    assert made != name
    assert not made.startswith(".")


@pytest.mark.parametrize("name", ["full-digits", "console", "com10", "nullable.txt", "a.b", "größe_1", "lpt"])
def test_usual_names_stay(name: str) -> None:
    assert file_name(name) == name


@given(st.text(), st.text())
def test_every_text_has_a_name_of_its_own_on_every_system(one: str, other: str) -> None:
    assert portable(file_name(one))
    assert len(file_name(one)) < 100
    assert (file_name(one) == file_name(other)) == (one == other)


@pytest.mark.parametrize("name", ["nul", "figures/aux.png", "CON.json", "a.", "a:b", "what?"])
def test_files_of_others_that_windows_cannot_have_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="none that every system can have"):
        check_folder(tmp_path)


# --- files that are open elsewhere


@pytest.mark.parametrize("times", [0, 1, 4])
def test_a_file_that_somebody_reads_is_replaced_when_he_is_done(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_io, "_WAITS", (0.0,) * 4)
    left, replace = times, Path.replace

    def busy(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left >= 0:
            raise PermissionError(13, "The process cannot access the file")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    (tmp_path / "a").write_text("old")
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_stays_open_elsewhere_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io, "_WAITS", (0.0,) * 4)

    def never(path: Path, target: Path) -> Path:
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr(Path, "replace", never)
    with pytest.raises(StoreError, match="cannot access the file"):
        write_atomically(tmp_path / "a", "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "a", tmp_path / "b")
