"""Output that cannot be written ends no command, and hides no exit status."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny

from robbench.cli._command import seconds
from robbench.cli._display import Terminal
from robbench.cli.main import main
from robbench.cli.run import Display
from robbench.core.errors import RequestError
from robbench.evaluation.scoring import without_result
from robbench.execution.jobs import Progress
from robbench.execution.runner import remaining
from robbench.planning.cost_estimate import weights
from robbench.results.store import Store


def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "robbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.end_to_end
def test_a_run_goes_on_without_its_reader_and_without_letters(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(tiny.grid_text(conditions=["clean", "fgsm@ref"], recipe="epochs = 1"), encoding="utf-8")
    words = ["run", "--grid", str(grid), "--limit", "9", "--workers", "1", "--out"]
    with (
        start(*words, str(tmp_path / "head")) as left,
        start(*words, str(tmp_path / "ascii"), PYTHONIOENCODING="ascii") as plain,
    ):
        assert left.stdout is not None
        left.stdout.readline()
        left.stdout.close()
        shown, complaints = plain.communicate(timeout=400)
        assert left.stderr is not None
        assert left.stderr.read() == b""
        assert left.wait(400) == 0
    assert (plain.returncode, complaints) == (0, b"")
    assert b"cross-entropy ? no defense" in shown
    for name in ("head", "ascii"):
        assert len(list((tmp_path / name / "cells").glob("*/record.json"))) == 2
        assert len(list((tmp_path / name / "leaderboards").glob("*/README.md"))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_not_the_readers_fault() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-m", "robbench", "list", "grid"], stdout=full, check=False)
    assert done.returncode == 0
    closed = subprocess.run(["sh", "-c", f"exec {sys.executable} -m robbench list grid >&- 2>&-"], check=False)
    assert closed.returncode == 0


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit()])
def test_a_plugin_cannot_end_a_command_as_if_it_were_done(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(inputs: object) -> None:
        raise error

    monkeypatch.setattr("robbench.planning.planner.make_plan", ends)
    assert main(["plan", "--grid", "smoke"]) == 2
    assert "a plugin tried to end the command" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:of a library")
def test_what_libraries_warn_of_is_a_line_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warns(inputs: object) -> None:
        warnings.warn("of a library\n\x1b[31m", UserWarning, stacklevel=1)
        library = logging.getLogger("a library")
        library.propagate = False
        library.warning("it says %s", "this")
        library.info("nobody asks")
        raise RequestError("that is all")

    monkeypatch.setattr("robbench.planning.planner.make_plan", warns)
    before = warnings.showwarning, logging.lastResort
    assert main(["plan", "--grid", "smoke"]) == 2
    assert (warnings.showwarning, logging.lastResort) == before
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"robbench: of a library \\u001b\[31m \(test_output\.py:\d+\)", first)
    assert (second, third) == ("robbench: it says this", "robbench: that is all")


@pytest.mark.end_to_end
def test_the_process_that_starts_others_says_nothing_of_what_it_loads() -> None:
    lacking = "class Lock:\n SEM_VALUE_MAX = 1\n def __init__(*_, **__): raise OSError(38, 'no memory')"
    shim = f"import _multiprocessing\n{lacking}\n_multiprocessing.SemLock = Lock\nimport robbench.execution.preloaded"
    done = subprocess.run([sys.executable, "-c", shim], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("backend", ["nonsense", "module://nowhere", "svg"])
def test_figures_need_no_backend(backend: str) -> None:
    ask = "from robbench.leaderboards.plots._style import Fonts; Fonts.installed(); import os, matplotlib; "
    words = [sys.executable, "-c", ask + "print(os.environ['MPLBACKEND'], matplotlib.get_backend())"]
    shown = subprocess.check_output(words, env={**os.environ, "MPLBACKEND": backend}, text=True).split()
    assert shown[0] == backend
    assert backend in ("nonsense", shown[1])


def test_a_grid_is_called_the_same_in_every_locale(tmp_path: Path) -> None:
    """What a board is called must not depend on how file names are shown."""
    path = tmp_path / "שלום-é.toml"
    path.write_text(tiny.grid_text(), encoding="utf-8")
    ask = "import sys; from robbench.planning.grid import read_grid; print(ascii(read_grid(sys.argv[1]).name))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words: list[str | bytes] = [sys.executable, "-c", ask, os.fsencode(path)]
    found = [subprocess.check_output(words, env={**os.environ, **more}) for more in ({"PYTHONUTF8": "1"}, plain)]
    assert found[0] == found[1] == ascii(path.stem).encode() + b"\n"


def test_the_time_left_is_weighed_by_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny.make(tmp_path, conditions=["clean", "pgd[steps=100]@ref"], recipe="epochs = 1", limit=20)
    store = Store(plan.request.out)
    work = remaining(plan, store)
    (job,) = plan.trained
    training, each = weights(job, job.cells, store)
    clean, pgd = job.cells
    assert (each[clean.key], each[pgd.key]) == (2 * 20, (101 + 2 * 100 + 2) * 20)
    assert training == 3 * max(len(job.data.splits.train), job.recipe.min_steps * job.recipe.batch_size)
    monkeypatch.setattr("robbench.cli.run.time.monotonic", lambda: 100.0)
    with Display(plan, work, Terminal(quiet=True), verbose=False, _started=0.0) as display:
        display.tell(Progress(job.label, "training", 1, 2))
        assert "0/2, 1:40" in display._state()
        behind = training / 2
        left = 100 * (training + sum(each.values()) - behind) / behind
        assert abs(seconds_left(display) - left) <= 0.5
        record = without_result(clean, "unsupported", "for a test", {})
        display.tell(Progress(job.label, "clean", finished=record, cell=clean.key))
        assert display._state().startswith("1/2")
        left = 100 * each[pgd.key] / (training + each[clean.key])
        assert abs(seconds_left(display) - left) <= 0.5


def seconds_left(display: Display) -> int:
    parts = display._state().rpartition("about ")[2].removesuffix(" left").split(":")
    return sum(int(part) * 60**power for power, part in enumerate(reversed(parts)))


def test_a_plan_leaves_out_columns_of_which_nothing_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(tiny.grid_text(conditions=["clean", "fgsm@ref"]), encoding="utf-8")
    assert main(["plan", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--cells"]) == 0
    shown = capsys.readouterr().out
    assert "passes left" in shown
    assert "time left" not in shown
    assert "?" not in shown


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("0.5s", 0.5), ("30m", 1800), ("6h", 21600)])
def test_times_are_seconds_or_have_a_unit(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1d", "inf", "nan", "", "h", "1e9", "9" * 400])
def test_what_is_no_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"--cell-timeout={text}"]) == 2
    assert "is not a time, as in 90s, 30m or 6h" in capsys.readouterr().err
