"""One component, grid or schema in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grid_files import tiny, write_grid

from robbench.cli.main import main
from robbench.core.registry import Registry
from robbench.planning.grid import built_in_grids, parse_grid
from robbench.planning.grid_schema import grid_schema


def shown(capsys: pytest.CaptureFixture[str], *words: str, command: str = "show") -> str:
    capsys.readouterr()
    assert main([command, *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", built_in_grids())
def test_a_built_in_grid_is_shown_as_it_is_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "grid", name) == built_in_grids()[name]


def test_a_file_is_shown_as_it_is_written_but_for_what_a_terminal_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_grid(tmp_path / "mine.toml", tiny(title="[bold]red[/] " + "x" * 200))
    assert shown(capsys, "grid", str(file)) == file.read_text(encoding="utf-8")
    file.write_text("# \x1b[31mred\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["show", "grid", str(file)]) == 2, "which TOML does not allow"
    assert "\x1b" not in "".join(capsys.readouterr())


def test_as_json_a_grid_says_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(shown(capsys, "grid", "full", "--json"))
    assert content["datasets"] == ["digits", "digits-imbalanced"]
    assert content["models"][0]["balancer"] == "none"
    assert content["seeds"] == [0]
    again = {key: value for key, value in content.items() if key != "datasets"}
    assert parse_grid(built_in_grids()["full"], "").model_dump(mode="json", exclude={"datasets"}) == again


def test_components_are_shown_as_lists_do(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["attack", "apgd-t"], ["defense", "fgm"], ["datasets", "digits"], ["toolbox", "art:SquareAttack"]):
        assert shown(capsys, *words) == shown(capsys, *words, command="list")
        (item,) = json.loads(shown(capsys, *words, "--json", command="list"))
        assert json.loads(shown(capsys, *words, "--json")) == item


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(shown(capsys, "schema", "grid")) == json.loads(json.dumps(grid_schema(Registry())))
