"""Models of a search, each trained in a process of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from plugin_files import write

from robbench.cli.main import main
from robbench.execution.trial import train_apart
from robbench.results.store import WEIGHTS, Store
from robbench.training.hyperparameter_search import prepare, search

FATAL = '''
import ctypes, sys
from dataclasses import dataclass
from robbench import Defense, register_defense

@register_defense("fatal")
@dataclass(frozen=True)
class Fatal(Defense):
    """Ends the process that it is used in."""

    def training_loss(self, batch):
        {body}
'''


def test_it_comes_to_the_same_as_in_place(tmp_path: Path) -> None:
    recipe = "epochs = 1, optimizer = 'sgd', lr = 1e12"
    found = []
    for name, rest in (("here", ()), ("apart", (train_apart,))):
        wanted = prepare(
            tiny.make(tmp_path / name, ["", f"defense = 'fgm'\nrecipe = {{ {recipe} }}"], recipe="epochs = 1")
        )
        trials = search(wanted, 2, lambda trial: None, *rest)
        bad = prepare(wanted.plan, wanted.plan.jobs[1].spec.label)
        trials += search(bad, 1, lambda trial: None, *rest)
        store = Store(wanted.plan.request.out)
        weights = [(store.model_dir(trial.models[0]) / WEIGHTS).read_bytes() for trial in trials[:2]]
        found.append(([replace(trial, seconds=None) for trial in trials], weights))
    assert found[0] == found[1]
    assert [trial.state for trial in found[1][0]] == ["done", "done", "diverged"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of signals")
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("ctypes.string_at(0)", "cannot be trained: crash: the process ended with SIGSEGV"),
        ("sys.exit(0)", "training cannot end so: SystemExit: 0"),
    ],
)
def test_a_plugin_that_ends_its_process_ends_no_search(
    tmp_path: Path, body: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write(tmp_path / "fatal.py", FATAL.format(body=body))
    grid = write(tmp_path / "grid.toml", tiny.grid_text(["defense = 'fatal'"], recipe="epochs = 1"))
    words = ["--grid", str(grid), "--out", str(tmp_path / "runs"), "--plugin", str(plugin), "--device", "cpu"]
    assert main(["search", *words, "--trials", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robbench: --row: ")
    assert told in line
