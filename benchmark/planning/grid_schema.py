"""The JSON schema of grid files, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter

from robbench.core.component import Component, field_texts
from robbench.core.registry import Kind, Registry
from robbench.planning.conditions import ConditionRequest
from robbench.planning.grid import GridFile, ModelEntry
from robbench.training.recipe import Recipe

_SWEPT: tuple[Kind, ...] = ("architecture", "objective", "defense", "balancer")


def grid_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a grid, in draft 7, which editors know.

    Args:
        registry: The components whose names are proposed; others are allowed, since plugins bring some.
    """
    schema = GridFile.model_json_schema()
    parts = schema["$defs"]
    grid, model = schema["properties"], parts["ModelEntry"]["properties"]
    for table, properties in ((GridFile, grid), (ModelEntry, model)):
        _describe(table, properties)
    parts["Recipe"], parts["Condition"] = _table(Recipe), _table(ConditionRequest)
    for properties in (grid, model):
        _point(properties["recipe"], "Recipe")
    grid["conditions"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Condition"}]}
    for kind in _SWEPT:
        parts[kind] = _named(registry, kind)
        one, several = {"$ref": f"#/$defs/{kind}"}, {"type": "array", "items": {"$ref": f"#/$defs/{kind}"}}
        model[kind]["anyOf"] = [one, several]
    parts["dataset"] = _named(registry, "dataset")
    grid["datasets"]["items"] = {"$ref": "#/$defs/dataset"}
    for part in parts.values():
        if "description" in part:
            part["description"] = part["description"].partition("\n\nAttributes:")[0].replace("``", "")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "title": "robbench grid",
        "description": "What is swept: data sets × models × conditions × seeds.",
    }


def _describe(table: type[BaseModel | Component], properties: dict[str, Any]) -> None:
    for name, text in field_texts(table).items():
        if name in properties:
            properties[name]["description"] = text


def _table(component: type[Component]) -> dict[str, Any]:
    """The schema of a table whose keys are the hyperparameters of a component."""
    schema = TypeAdapter(component).json_schema()
    _describe(component, schema["properties"])
    return {**schema, "additionalProperties": False}


def _point(field: dict[str, Any], part: str) -> None:
    """Say that a field, whose type is an open table, is a part of the schema."""
    for key in ("type", "additionalProperties"):
        field.pop(key, None)
    field["allOf"] = [{"$ref": f"#/$defs/{part}"}]


def _named(registry: Registry, kind: Kind) -> dict[str, Any]:
    """A component as a text that names it, or as a table with its name and parameters."""
    names = {"type": "string", "enum": list(registry.entries(kind))}
    table = {"type": "object", "properties": {"name": {"anyOf": [names, {"type": "string"}]}}, "required": ["name"]}
    return {"anyOf": [names, {"type": "string"}, table]}
