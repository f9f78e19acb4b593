from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from grid_files import tiny, write_grid
from plugin_files import EVERYTHING, GRAY, GRID, PLAIN, SHRINK, SHRUNK, cells, changed_files, run, words, write
from stores import complaint

from robbench.cli.main import main
from robbench.planning.grid import Request
from robbench.planning.planner import make_plan
from robbench.results.store import Store

pytestmark = pytest.mark.usefixtures("one_core", "no_figures")
EXACT = '''
import torch
from dataclasses import dataclass
from robbench import Attack, register_attack

@register_attack("exact", norms=("linf",))
@dataclass(frozen=True)
class Exact(Attack):
    """Looks at the precision that it is asked to search in."""

    def perturb(self, model, images, labels, threat, rng):
        scores = model(images)
        if torch.is_autocast_enabled("cpu") or scores.dtype != torch.float32:
            raise ValueError("attacks that stop at the first image that fools a coarse model stop too early")
        return images
'''


# --- plugin files


def test_what_trains_in_lower_precision_is_attacked_in_full(tmp_path: Path) -> None:
    exact = write(tmp_path / "exact.py", EXACT)
    write_grid(tmp_path / "grid.toml", tiny(conditions=["exact@ref"]))
    command = ["run", "--workers", "1", "--precision", "bfloat16", *words(tmp_path, [exact])]
    assert main(command) == 0
    plan = make_plan(
        Request(str(tmp_path / "grid.toml"), tmp_path / "runs", limit=20, plugins=(exact,), precision="bfloat16")
    )
    (record,) = (Store(tmp_path / "runs").record(cell.key) for _, cell in plan.cells)
    assert record is not None
    assert (record.status, record.spec.precision) == ("done", "bfloat16")


def test_a_plugin_is_listed_only_when_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gray = write(tmp_path / "gray.py", GRAY)
    assert main(["list", "attack"]) == 0
    assert "gray" not in capsys.readouterr().out.split()
    assert main(["list", "attack", "--plugin", str(gray)]) == 0
    shown = capsys.readouterr().out
    assert "gray" in shown.split()
    assert "Moves every pixel toward gray" in shown
    assert "gray.py" in shown
    assert main(["list", "attack", "gray", "--plugin", str(gray)]) == 0
    assert "share 1 number" in " ".join(capsys.readouterr().out.split())


def test_a_plugin_may_have_a_name_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gray = write(tmp_path / os.fsdecode(b"gr\xe4.py"), GRAY)
    assert main(["list", "attack", "gray", "--plugin", str(gray)]) == 0
    assert "gr?.py" in capsys.readouterr().out
    write_grid(tmp_path / "grid.toml", tiny(conditions=["gray@ref"]))
    assert run(tmp_path, gray) == 0
    assert {record.status for record in cells(tmp_path, gray).values()} == {"done"}


@pytest.mark.end_to_end
def test_an_edited_plugin_has_its_own_cells_done_again_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray, shrink = write(tmp_path / "gray.py", GRAY), write(tmp_path / "shrink.py", SHRINK)
    write_grid(tmp_path / "grid.toml", GRID)
    assert run(tmp_path, gray, shrink) == 0
    first = cells(tmp_path, gray, shrink)
    assert set(first) == EVERYTHING
    board = next((tmp_path / "runs" / "leaderboards").glob("*/README.md")).read_text(encoding="utf-8")
    assert "shrink" in board
    assert "gray@0.1" in board
    assert any("gray.py" in label for label in first[PLAIN, "clean"].provenance["plugins"])
    sources = {
        first[PLAIN, "gray@0.1"].spec.condition.stages[0].source,
        first[SHRUNK, "clean"].spec.model.defenses[0].source,
        first[PLAIN, "fgsm@0.1"].spec.condition.stages[0].source,
    }
    assert len(sources) == 3
    assert None in sources

    capsys.readouterr()
    assert run(tmp_path, gray, shrink) == 0
    assert "Nothing to do" in capsys.readouterr().out

    before = changed_files(tmp_path)
    write(gray, GRAY.replace("share: float = 1.0", "share: float = 0.5"))
    assert run(tmp_path, gray, shrink) == 0
    assert "4 done, 2 to do" in capsys.readouterr().out
    second = cells(tmp_path, gray, shrink)
    again = {name for name in EVERYTHING if second[name].key != first[name].key}
    assert again == {(PLAIN, "gray@0.1"), (SHRUNK, "gray@0.1")}
    assert {key: when for key, when in changed_files(tmp_path).items() if key in before} == before
    moved = [Store(tmp_path / "runs").outcome(found[PLAIN, "gray@0.1"]) for found in (first, second)]
    assert moved[0] is not None
    assert moved[1] is not None
    assert moved[1].linf.max() == pytest.approx(moved[0].linf.max() / 2)

    write(shrink, SHRINK.replace("0.9", "0.8"))
    assert run(tmp_path, gray, shrink) == 0
    third = cells(tmp_path, gray, shrink)
    assert {name for name in EVERYTHING if third[name].key != second[name].key} == {
        name for name in EVERYTHING if name[0] == SHRUNK
    }
    assert third[SHRUNK, "clean"].spec.model_key != second[SHRUNK, "clean"].spec.model_key


def test_plugins_of_a_grid_lie_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "gray.py", GRAY)
    grid = write_grid(tmp_path / "grid.toml", tiny(conditions=["gray@ref"], plugins=["parts/gray.py"]))
    (job,) = make_plan(Request(str(grid), tmp_path / "runs")).jobs
    assert job.cells[0].condition.stages[0].attack.source is not None


@pytest.mark.parametrize(("name", "known"), [("gray", "one.py"), ("fgsm", "fgm.py")])
def test_two_components_of_one_name_are_an_error_that_names_both_files(
    name: str, known: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one.py", GRAY)
    two = write(tmp_path / "two.py", GRAY.replace('"gray"', f'"{name}"'))
    error = complaint(main(["list", "attack", "--plugin", str(one), "--plugin", str(two)]), capsys, 2)
    assert f'are named "{name}"' in error
    assert known in error
    assert str(two) in error


def test_one_file_named_twice_is_one_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gray = write(tmp_path / "gray.py", GRAY)
    assert main(["list", "attack", "--plugin", str(gray), "--plugin", str(tmp_path / "x" / ".." / "gray.py")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit(0)", "SystemExit"),
        (GRAY.replace("frozen=True", "frozen=False"), "non-frozen"),
        (GRAY.replace('"linf"', '"linff"'), 'did you mean "linf"?'),
        (GRAY.replace('("linf",)', "()"), "names no norm"),
        (GRAY.replace('"gray"', '"gr[ay"'), "cannot be the name"),
        (GRAY.replace("(Attack)", ""), "Gray is not derived from robbench.Attack"),
        (SHRINK.replace("register_defense", "register_balancer"), "Shrink is not derived from robbench.Balancer"),
        ("\0", "null bytes"),
    ],
)
def test_a_broken_plugin_is_refused_in_one_line(
    text: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write(tmp_path / "plugin.py", text)
    error = complaint(main(["list", "attack", "--plugin", str(plugin)]), capsys, 2)
    assert str(plugin) in error
    assert part in error
    # Broken once is broken the next time, too.
    assert main(["list", "attack", "--plugin", str(plugin)]) == 2


@pytest.mark.parametrize("name", ["gone.py", "folder", "plugin.txt"])
def test_a_plugin_that_is_no_python_file_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "plugin.txt", GRAY)
    assert main(["list", "--plugin", str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


def test_an_attack_without_perturb_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write(tmp_path / "plugin.py", GRAY.replace("def perturb", "def disturb"))
    write_grid(tmp_path / "grid.toml", tiny(conditions=["gray@ref"]))
    error = complaint(main(["plan", *words(tmp_path, [plugin])]), capsys, 2)
    assert "perturb" in error
    assert str(plugin) in error


# --- installed plugins


@pytest.mark.end_to_end
def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path: Path) -> None:
    package = tmp_path / "site" / "gray_plugin"
    write(package / "__init__.py", "from gray_plugin.attack import Gray\nfrom gray_plugin.defense import Shrink\n")
    write(package / "attack.py", GRAY)
    write(package / "defense.py", SHRINK)
    info = tmp_path / "site" / "gray_plugin-1.5.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: gray-plugin\nVersion: 1.5\n")
    write(info / "entry_points.txt", "[robbench.plugins]\ngray = gray_plugin\n")
    write_grid(tmp_path / "grid.toml", GRID)
    code = """
import sys
import robbench.execution.local
from robbench.cli.main import main
robbench.execution.local.cores = lambda: 1
assert main(["list", "attack"]) == 0
sys.exit(main(sys.argv[1:]))
"""

    def fresh_process(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *command, *words(tmp_path, [])],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "gray 1.5" in fresh_process("run", "--workers", "1")
    records = [Store(tmp_path / "runs").record(key) for key in changed_files(tmp_path)]
    assert {(r.spec.model.label, r.spec.condition.label) for r in records if r is not None} == EVERYTHING
    assert all("gray 1.5" in r.provenance["plugins"] for r in records if r is not None)

    # A package is one plugin: an edit anywhere in it concerns all its components, and nothing else.
    write(package / "attack.py", GRAY.replace("share: float = 1.0", "share: float = 0.5"))
    assert "6 cells, 2 done" in fresh_process("plan")


# --- metrics

METRIC = '''
from dataclasses import dataclass
from robbench import Measure, Metric, register_metric

@register_metric("thirds")
@dataclass(frozen=True)
class Thirds(Metric):
    """Is always a third."""

    def measure(self, outcome):
        return {"third": Measure(1 / 3)}
'''


def test_a_new_metric_is_taken_of_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = write(tmp_path / "metric.py", METRIC)
    write_grid(tmp_path / "grid.toml", tiny(conditions=["clean"]))
    assert run(tmp_path) == 0
    (before,) = cells(tmp_path).values()
    assert run(tmp_path, metric) == 0
    (after,) = cells(tmp_path).values()
    assert "third" not in before.metrics
    assert after.metrics["third"].value == 1 / 3
    assert (after.key, after.outcome_sha256) == (before.key, before.outcome_sha256)
    assert {name: after.metrics[name] for name in before.metrics} == before.metrics

    write(metric, METRIC.replace("return {", "raise ValueError('uncountable') or {"))
    capsys.readouterr()
    error = complaint(run(tmp_path, metric), capsys, 2)
    assert "uncountable (metric.py:" in error
    assert cells(tmp_path)[PLAIN, "clean"] == after
