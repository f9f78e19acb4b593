"""Keys of a grid that a request sets."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from grid_files import grid_text, tiny, toml
from hypothesis import given
from hypothesis import strategies as st

from robbench.cli.main import main
from robbench.core.errors import RequestError
from robbench.core.safe_text import visible
from robbench.execution.boards import note_boards
from robbench.planning.grid import Grid, GridFile, ModelEntry, Request, parse_grid, read_grid
from robbench.planning.overrides import overridden
from robbench.planning.planner import make_plan
from robbench.results.store import Store
from robbench.training.recipe import Recipe

CONTENT = tiny(
    datasets=["digits", {"name": "digits", "classes": ["1", "7"]}],
    conditions=["clean", {"chain": "rotation", "draws": 3}],
    recipe={"epochs": 1},
    models=[{"defense": ["none", "fgm"]}, {"objective": "angular", "recipe": {"epochs": 9, "lr": 0.1}}],
    differences={"digits[classes=1|7]": "fewer"},
    references=[{"dataset": "digits[classes=1|7]", "row": "theirs", "value": 0.5}],
)


def grid(content: dict[str, Any]) -> Grid:
    text = grid_text(content)
    return Grid("mine", Path(), "mine.toml", parse_grid(text, "mine.toml"))


def at(path: tuple[str | int, ...], content: Any) -> Any:
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seeds=[0,1]", ("seeds",), [0, 1]),
        ("seeds.0=7", ("seeds", 0), 7),
        (" audit = true ", ("audit",), True),
        ("title=two words", ("title",), "two words"),
        ('title="5"', ("title",), "5"),
        ("title=a=b", ("title",), "a=b"),
        ("rank_by=linf@8/255", ("rank_by",), "linf@8/255"),
        ("recipe.epochs=5", ("recipe", "epochs"), 5),
        ("epochs=5", ("recipe", "epochs"), 5),
        ("recipe={ lr = 0.5 }", ("recipe",), {"lr": 0.5}),
        ("conditions.0=pgd[steps=3]@8/255", ("conditions", 0), "pgd[steps=3]@8/255"),
        ("conditions.1.draws=5", ("conditions", 1, "draws"), 5),
        ("datasets.1.classes=['3']", ("datasets", 1, "classes"), ["3"]),
        ("models.0.defense=fgm", ("models", 0, "defense"), "fgm"),
        ("models.0.defense.1=trades", ("models", 0, "defense", 1), "trades"),
        ("models.1.epochs=5", ("models", 1, "recipe", "epochs"), 5),
        ("models.0.recipe.schedule=cosine", ("models", 0, "recipe", "schedule"), "cosine"),
        ("models.0={}", ("models", 0, "defense"), "none"),
        ('differences."digits[classes=1|7]"=more = better', ("differences", "digits[classes=1|7]"), "more = better"),
    ],
)
def test_a_key_is_a_path_and_a_value_is_toml(override: str, path: tuple[str | int, ...], value: object) -> None:
    before = grid(CONTENT)
    after = overridden(before, [override])
    assert at(path, after.content.model_dump()) == value
    assert before.content == grid(CONTENT).content
    assert "--set" in after.where


@pytest.mark.parametrize("key", ["epochs", "recipe.epochs"])
def test_a_key_without_number_is_that_of_every_model(key: str) -> None:
    models = overridden(grid(CONTENT), [f"models.{key}=5"]).content.models
    assert [entry.recipe for entry in models] == [{"epochs": 5}, {"epochs": 5, "lr": 0.1}]
    assert grid(CONTENT).content.models[1].recipe["epochs"] == 9


def test_models_of_others_keep_what_training_does_not_concern() -> None:
    models = [{"objective": "angular"}, {"external": {"source": "net.py:make", "mean": [0.5]}, "name": "theirs"}]
    given = grid({**tiny(), "models": models})
    changed = overridden(given, ["title=mine", "models.epochs=5", "models.defense=jpeg"]).content
    assert [entry.recipe for entry in changed.models] == [{"epochs": 5}, {}]
    assert [entry.defense for entry in changed.models] == ["jpeg", "jpeg"]
    assert changed.models[1].asked == given.content.models[1].asked
    with pytest.raises(RequestError, match=r"models\.1"):
        overridden(given, ["models.1.epochs=5"])


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seeds=[3]", ("seeds",), [3]),
        ("models.epochs=5", ("models", 0, "recipe"), {"epochs": 5}),
        ("models.objective=angular", ("models", 0, "objective"), "angular"),
        ("models.defense=none", ("models", 1, "defense"), "none"),
        ("models.1.name=theirs", ("models", 1, "name"), "theirs"),
        ("models.1.external=other.py:make", ("models", 1, "external"), "other.py:make"),
    ],
)
def test_a_model_that_others_trained_is_left_as_it_is(
    override: str, path: tuple[str | int, ...], value: object
) -> None:
    """Training is set where something is trained."""
    mixed = grid(tiny(models=[{"defense": "fgm"}, {"external": "net.py:make"}]))
    made = overridden(mixed, [override]).content
    assert at(path, made.model_dump()) == value
    assert not made.models[1].recipe
    with pytest.raises(RequestError, match=r"models\.1"):
        overridden(mixed, ["models.1.epochs=5"])


def test_later_overrides_come_after_earlier_ones() -> None:
    after = overridden(grid(CONTENT), ["models=[{}]", "models.0.defense=fgm", "models.defense=trades"])
    assert [entry.defense for entry in after.content.models] == ["trades"]


def test_fields_of_the_recipe_are_no_keys_of_grids_and_models() -> None:
    """So that they can be named without ``recipe.``."""
    assert not set(Recipe.field_names()).intersection([*GridFile.model_fields, *ModelEntry.model_fields])


@given(
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
)
def test_every_toml_value_arrives_as_a_file_would_have_it(value: object) -> None:
    entry = {"name": "digits", "option": value}
    text = toml(entry)
    after = overridden(grid(CONTENT), [f"datasets.0={text}"]).content.datasets[0]
    assert after == tomllib.loads(f"x = {text}")["x"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("", ["KEY=VALUE"]),
        ("epochs", ["KEY=VALUE"]),
        ("=5", ["KEY=VALUE"]),
        ("epochs=", ["not TOML"]),
        ("seeds=[0", ["not TOML"]),
        ('title="x', ["not TOML"]),
        ("seeds=[1]\naudit=true", ["one key"]),
        ("title=two\nlines", ["not TOML"]),
        ("seds=[0]", ['no key "seds"', '"seeds"']),
        ("epoch=5", ['no key "epoch"', '"epochs"']),
        ("recipe.epoch=5", ['no key "epoch"', '"epochs"']),
        ("models.epoch=5", ['no key "epoch"', '"epochs"']),
        ("models.0.defence=fgm", ['no key "defence"', '"defense"']),
        ("models.0.recipe.lrr=1", ['no key "lrr"', '"lr"']),
        ("models.2.defense=fgm", ["2 items", '"2"']),
        ("models.-1.defense=fgm", ['no key "-1"']),
        ("seeds.one=1", ["1 items", '"one"']),
        ("seeds=text", ["seeds", "'text'"]),
        ("seeds=[-1]", ["seeds.0", "-1"]),
        ("models=[]", ["models", "at least 1"]),
        ("audit=yes", ["audit", "'yes'"]),
        ("rank_by=linf@", ["rank_by"]),
        ("datasets.0.classes=['1']", ['"datasets.0"', '"digits"']),
        ("models.0.architecture.name=x", ["models.0.architecture", "null"]),
        ("seeds=[99999999999999999999]", ["64 bits"]),
        (os.fsdecode(b"title=caf\xe9"), ["not UTF-8"]),
    ],
)
def test_a_wrong_override_is_refused_by_its_name(override: str, parts: list[str]) -> None:
    with pytest.raises(RequestError) as found:
        overridden(grid(CONTENT), [override])
    message = str(found.value)
    assert message.startswith(visible(f"--set {override}".split("\n")[0]))
    for part in parts:
        assert part in message


def test_a_value_that_only_the_plan_refuses_is_laid_to_the_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, part in {
        "models.defense=fgmm": '"fgm"',
        "epochs=0": "epochs = 0",
        "datasets.0=digit": '"digits"',
    }.items():
        assert main(["plan", "--grid", "smoke", "--out", str(tmp_path / "runs"), "--set", override]) == 2
        shown = capsys.readouterr().err
        assert "changed by --set" in shown
        assert part in shown


def test_a_built_in_grid_that_is_changed_has_a_board_of_its_own(tmp_path: Path) -> None:
    boards = {}
    for overrides in ((), ("seeds=[0]",), ("epochs=3",), ("models.epochs=3",), ("title=Mine",)):
        request = Request("smoke", tmp_path, device="cpu", overrides=overrides)
        boards[overrides] = next(iter(note_boards(make_plan(request), Store(tmp_path))))
    assert boards[()] == boards[("seeds=[0]",)] == "smoke-digits", "which is what the grid says"
    assert boards[("epochs=3",)] == boards[("models.epochs=3",)], "which mean the same here"
    assert len(set(boards.values())) == 3
    assert all(board.startswith("smoke-digits") for board in boards.values())
    assert read_grid("smoke").built_in
