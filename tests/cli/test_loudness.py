"""How much a run says: everything about every cell, or nothing but errors and its boards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from grid_files import tiny, write_grid
from plugin_files import write

from robbench.cli.main import main
from robbench.core.errors import trace_of
from robbench.execution.plugin_process import PluginFailure
from robbench.training import hyperparameter_search
from robbench.training.recipe import Recipe
from robbench.training.trial_table import Trial

BROKEN = '''
from dataclasses import dataclass
from robbench import Attack, register_attack

@register_attack("broken", norms=("linf",))
@dataclass(frozen=True)
class Broken(Attack):
    """Does not work."""

    def perturb(self, model, images, labels, threat, rng):
        return self.fail("[bold]in the middle \\x1b[31m")

    def fail(self, why):
        raise ValueError(why)
'''


def test_a_run_says_as_much_as_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robbench.execution.local.cores", lambda: 1)
    grid = write_grid(tmp_path / "grid.toml", tiny(conditions=["clean", "broken@ref"]))
    words = ["--grid", str(grid), "--plugin", str(write(tmp_path / "broken.py", BROKEN)), "--limit", "20"]
    command = ["run", "--workers", "1", "--out", str(tmp_path / "runs"), *words]

    assert main([*command, "--verbose"]) == 1
    loud = capsys.readouterr().out
    model = "digits[train_fraction=0.1] · cross-entropy · no defense · seed 0"
    assert f"{model} · clean: " in loud
    assert f"{model} · broken@0.1: failed" in loud
    assert "Traceback (most recent call last):" in loud
    assert 'broken.py", line 11, in perturb' in loud, "of the plugin, in the process where it ran"
    assert "ValueError: [bold]in the middle" in loud
    assert "\x1b" not in loud
    assert loud.count(" left] ") + loud.count("time left unknown] ") == 2, "a line for each cell"

    assert main([*command, "--quiet"]) == 1, "the failed cell is tried again"
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    assert line.startswith("Board: ")
    assert Path(line.removeprefix("Board: ")).is_file()
    (error,) = shown.err.splitlines()
    assert error.startswith(f"robbench: failed: {model} · broken@0.1: ValueError")

    assert "Traceback" not in shown.err
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("record.json")]
    assert {record["status"] for record in records} == {"done", "failed"}
    assert not any("Traceback" in json.dumps(record) for record in records), "it is shown and not kept"


def test_what_is_done_already_is_one_line_for_the_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from robbench.planning.inputs import Finished

    monkeypatch.setattr("robbench.execution.runner.run", lambda *_, **__: Finished("grid", 3, ("grid-digits",)))
    board = f"Board: {tmp_path / 'leaderboards' / 'grid-digits' / 'index.html'}\n"
    assert main(["run", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Nothing to do: all 3 cells of grid are done.\n{board}"
    assert main(["run", "--out", str(tmp_path), "-q"]) == 0
    assert capsys.readouterr().out == board


def test_a_run_cannot_be_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-q", "-v"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_quiet_search_gives_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [Trial(number, "done", Recipe(epochs=number), (), score, 0.1) for number, score in ((1, 0.5), (2, 0.9))]

    def searched(wanted: object, count: int, tell: Callable[[Trial], None], train: object) -> list[Trial]:
        for trial in trials:
            tell(trial)
        return trials

    monkeypatch.setattr(hyperparameter_search, "search", searched)
    words = ["search", "--grid", "smoke", "--out", str(tmp_path), "--trials", "2"]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{trials[1].recipe.toml()}\n"
    assert main(words) == 0
    assert "[1/2] 50.0 %" in capsys.readouterr().out


def test_a_traceback_keeps_its_end(tmp_path: Path) -> None:
    def raised(error: Exception) -> str:
        try:
            raise error
        except Exception as caught:
            return trace_of(caught)

    assert raised(ValueError("x" * 50_000)).endswith("x")
    assert len(raised(ValueError("x" * 50_000))) == 20_000
    assert raised(PluginFailure("lost")).startswith("Traceback")
