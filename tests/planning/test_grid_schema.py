"""The JSON schema of grids says of a grid what its reader says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from grid_files import tiny

from robbench.core.errors import RequestError
from robbench.core.registry import Registry
from robbench.planning.conditions import ConditionRequest
from robbench.planning.grid import GridFile, ModelEntry, built_in_grids, check_grid
from robbench.planning.grid_schema import grid_schema
from robbench.training.recipe import Recipe

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parents[2]
SCHEMA = grid_schema(Registry(installed=False))


def fits(content: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft7Validator(SCHEMA).is_valid(content))


def read(content: dict[str, Any]) -> bool:
    """Whether the reader takes a grid, as far as that shows without components."""
    try:
        grid = check_grid(content, "")
        for recipe in (grid.recipe, *(entry.recipe for entry in grid.models)):
            Recipe.make(recipe, "")
        for condition in grid.conditions:
            ConditionRequest.read(condition, "")
    except RequestError:
        return False
    return True


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_grids_that_there_are_fit() -> None:
    readme = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    for text in (*built_in_grids().values(), *readme):
        content = tomllib.loads(text)
        assert fits(content), text
        assert read(content)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": [0, 1]},
        {"recipe": {"lr": 1, "schedule": "cosine"}},
        {"datasets": ["{dataset}", {"name": "digits", "classes": ["1"]}]},
        {"models": [{"defense": ["none", {"name": "fgm"}], "architecture": {"name": "mine"}}]},
        {"models": [{"start": "imagenet"}, {"start": ["imagenet", "other"]}]},
        {"conditions": [{"chain": "pgd@ref", "check": True, "models": ["row"], "sample": 5}]},
        {"references": [{"dataset": "digits", "row": "theirs", "value": 0.5}]},
        {"seed": [0]},
        {"seeds": []},
        {"seeds": [-1]},
        {"seeds": ["0"]},
        {"seeds": 0},
        {"title": 5},
        {"models": []},
        {"models": [{"defence": "fgm"}]},
        {"models": [{"recipe": {"epoch": 5}}]},
        {"models": [{"seeds": [2**31]}]},
        {"models": [{"datasets": []}]},
        {"recipe": {"epochs": 0}},
        {"recipe": {"optimizer": "lion"}},
        {"recipe": {"batch_size": 1}},
        {"conditions": []},
        {"conditions": [5]},
        {"conditions": [{"sample": 5}]},
        {"conditions": [{"chain": "pgd@ref", "smaple": 5}]},
        {"conditions": [{"chain": "rotation", "draws": 0}]},
        {"references": [{"row": "theirs", "value": 0.5}]},
        {"references": [{"dataset": "digits", "row": "theirs", "value": 50}]},
    ],
)
def test_it_takes_what_the_reader_takes(changes: dict[str, Any]) -> None:
    content = tiny(**changes)
    assert fits(content) == read(content)


def test_every_key_says_what_it_means() -> None:
    parts = SCHEMA["$defs"]
    tables = {"ModelEntry": ModelEntry.model_fields, "Recipe": Recipe.field_names()}
    tables["Condition"] = ConditionRequest.field_names()
    for properties, fields in (
        (SCHEMA["properties"], GridFile.model_fields),
        *((parts[name]["properties"], fields) for name, fields in tables.items()),
        (parts["DatasetReference"]["properties"], parts["DatasetReference"]["properties"]),
    ):
        assert set(properties) == set(fields)
        for name, field in properties.items():
            assert field["description"].endswith("."), name
            assert "``" not in field["description"]
    assert not any("Attributes:" in part.get("description", "") for part in (SCHEMA, *parts.values()))


def test_names_of_components_are_proposed_but_others_are_taken() -> None:
    assert "fgm" in SCHEMA["$defs"]["defense"]["anyOf"][0]["enum"]
    assert "digits" in SCHEMA["$defs"]["dataset"]["anyOf"][0]["enum"]
    assert fits(tiny(models=[{"defense": "somebody-elses"}]))
