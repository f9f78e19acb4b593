from __future__ import annotations

import re
from pathlib import Path

import pytest

from robbench.cli.main import main
from robbench.core.registry import Registry
from robbench.planning.grid import parse_grid

ROOT = Path(__file__).resolve().parents[1]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_worked_examples_of_the_contributing_guide_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for number, block in enumerate(blocks("CONTRIBUTING.md", "python")):
        files.append(tmp_path / f"example{number}.py")
        files[-1].write_text(block, encoding="utf-8")
    registry = Registry(tuple(files), installed=False)
    names = [name for kind in ("attack", "defense", "dataset") for name in registry.entries(kind)]
    assert {"corner-search", "noise-training", "stripes", "stripes-imbalanced"} <= set(names)
    grid = tmp_path / "examples.toml"
    grid.write_text(
        'datasets = ["stripes", "stripes-imbalanced"]\n'
        'conditions = ["clean", "corner-search@ref", "perturbation+corner-search@each"]\n'
        '[[models]]\ndefense = ["none", "noise-training+fgm"]\nrecipe = { epochs = 1 }\n',
        encoding="utf-8",
    )
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "20", "--workers", "1"]
    assert main([*words, *(word for file in files for word in ("--plugin", str(file)))]) == 0
    assert "noise-training+fgm" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_the_plugin_of_the_readme_keeps_the_rules(tmp_path: Path) -> None:
    plugin = tmp_path / "grey.py"
    plugin.write_text(blocks("README.md", "python")[0], encoding="utf-8")
    grid = tmp_path / "grey.toml"
    grid.write_text('conditions = ["grey@each"]\n[[models]]\nrecipe = { epochs = 1 }\n', encoding="utf-8")
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "runs"), "--limit", "20", "--workers", "1"]
    assert main([*words, "--plugin", str(plugin)]) == 0


def test_the_grid_of_the_readme_is_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks("README.md", "toml")[0]
    assert len(parse_grid(text, "README").models) == 2
    grid = tmp_path / "mine.toml"
    grid.write_text(text, encoding="utf-8")
    assert main(["plan", "--grid", str(grid), "--out", str(tmp_path / "runs")]) == 0
    assert "wide, from the first" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), f"{name} links to {target}"


def test_the_commands_of_the_readme_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^    robbench (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert lines
    for command in lines:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: robbench {command}")
