"""``robbench show``: one component, grid or schema in full."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robbench.cli import _command
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.safe_text import visible_json

if TYPE_CHECKING:
    from robbench.cli._inventory import AttackTraits, Item

SCHEMAS = ("grid",)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help="attack, defense, dataset, …, grid, toolbox, schema")
    parser.add_argument("name", metavar="NAME", help="the component; of a grid, its name or file; of a schema, grid")
    parser.add_argument("--json", action="store_true", help="as JSON; of a grid, what it says with defaults filled in")
    _command.add_plugins(parser)


def _action(options: argparse.Namespace) -> int:
    from robbench.cli._inventory import ALL_KINDS, item, kind_called
    from robbench.core.registry import Registry

    registry = Registry(tuple(options.plugin))
    kind = kind_called(options.kind, (*ALL_KINDS, "schema"))
    if kind == "schema":
        from robbench.planning.grid_schema import grid_schema

        if options.name not in SCHEMAS:
            raise RequestError(f'there is no schema "{options.name}"; {did_you_mean(options.name, SCHEMAS)}')
        _show_json(grid_schema(registry))
    elif kind == "grid":
        _show_grid(options.name, options.json)
    elif options.json:
        _show_json(item(registry, kind, options.name).plain())
    else:
        show_one(item(registry, kind, options.name))
    return 0


COMMAND = _command.Command(
    place=32,
    summary="show one component, grid or schema in full",
    about="Shows a component with its parameters, their defaults and bounds, or the text of a grid, to start one of "
    "your own from. The JSON schema of grids lets an editor complete and check their keys.",
    examples=(
        ("robbench show attack apgd-t", "what it is, its parameters and costs"),
        ("robbench show grid full", "its text: add > mine.toml and change that"),
        ("robbench show schema grid", "saved as g.json, for a first line #:schema g.json in a grid"),
    ),
    options=_options,
    action=_action,
)


def _show_json(value: object) -> None:
    print(visible_json(json.dumps(value, indent=2, ensure_ascii=False, default=str)))


def _show_grid(name: str, as_json: bool) -> None:
    from robbench.cli._display import Terminal
    from robbench.planning.grid import built_in_grids, read_grid

    grid = read_grid(name, "")
    content = grid.content
    if as_json:
        plain = content.model_dump(mode="json")
        _show_json({**plain, "datasets": [content.filled(wanted, None) for wanted in content.datasets]})
        return
    text = built_in_grids()[name] if grid.built_in else Path(name).read_text(encoding="utf-8")
    Terminal().say(text.rstrip("\n"))


def show_one(listed: Item) -> None:
    """Everything about a component, or the text of a grid."""
    from robbench.cli._display import Terminal, table

    console = Terminal()
    if listed.kind == "grid":
        console.say(listed.text.rstrip("\n"))
        return
    console.print(f"{listed.kind} {listed.name}\n")
    console.print(listed.text)
    lines = []
    traits = listed.attack
    if traits is not None:
        lines = [
            ("norms", ", ".join(traits.norms)),
            ("needs", traits.needs),
            ("passes", _passes(traits)),
            ("eps", "taken" if traits.takes_eps else "not taken"),
            ("targets", "possible" if traits.targetable else "not possible"),
        ]
    lines += [("from", listed.origin)] if listed.origin else []
    lines += [("example", listed.example)] if listed.example else []
    if lines:
        console.print()
    for name, value in lines:
        console.say(f"{name:8} {value}")
    if listed.parameters:
        made = table("parameter", "default", "values", "meaning")
        made.columns[3].ratio = 1
        for parameter in listed.parameters:
            default = "required" if parameter.required else _value(parameter.default)
            made.add_row(parameter.name, default, _values(parameter.schema), parameter.about)
        console.print()
        console.print(made)


def _passes(traits: AttackTraits) -> str:
    if traits.passes is None:
        return "depends on the other models of the grid"
    forwards, backwards = traits.passes
    return f"at most {forwards:,} forward + {backwards:,} backward for an image of ten classes"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "|".join(map(_value, value)) or "empty"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"boolean": "true, false", "null": "none", "string": "text"}


def _values(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_value, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        parts = list(dict.fromkeys(map(_values, schema.get("prefixItems", [schema.get("items", {})]))))
        length = f"{len(schema['prefixItems'])} × " if "prefixItems" in schema else "list of "
        return length + " or ".join(parts)
    kind = str(schema.get("type", "any"))
    bounds = ", ".join(f"{sign} {_value(schema[name])}" for name, sign in _BOUNDS.items() if name in schema)
    return f"{_TYPES.get(kind, kind)} {bounds}".strip()
