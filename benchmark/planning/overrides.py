"""Keys of a grid that a request sets, as ``--set recipe.epochs=5`` does. Needs no torch."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from robbench.core.errors import RequestError, did_you_mean
from robbench.core.safe_text import file_text
from robbench.planning.grid import OF_TRAINING, Grid, GridFile, ModelEntry, check_grid
from robbench.training.recipe import Recipe

_PART = r"""[\w-]+|"[^"]*"|'[^']*'"""
_OVERRIDE = re.compile(rf"\s*((?:{_PART})(?:\.(?:{_PART}))*)\s*=(.*)", flags=re.DOTALL)


def overridden(grid: Grid, overrides: Sequence[str]) -> Grid:
    """A grid with some keys set, one after the other.

    An override is ``KEY=VALUE``. The key is a path as messages name it: ``seeds``, ``recipe.epochs``,
    ``models.0.defense``. ``models.KEY`` is the key of every model, and a field of the recipe needs no ``recipe.``:
    ``models.epochs`` is ``recipe.epochs`` of every model that is trained. The value is TOML; what could be no TOML
    value is a text, so that ``fgm`` needs no quotation marks.

    Args:
        grid: The grid.
        overrides: What to set.

    Raises:
        RequestError: If a key is unknown or a value does not fit, naming the override.
    """
    content = grid.content
    for override in overrides:
        content = _set(content, override)
    if content.model_dump() == grid.content.model_dump():
        return grid
    return replace(grid, content=content, where=f"{grid.where}, changed by --set", built_in=False)


def _set(content: GridFile, override: str) -> GridFile:
    where = f"--set {override}"
    if file_text(override) != override:
        raise RequestError("it is not UTF-8 text", where)
    found = _OVERRIDE.fullmatch(override)
    if found is None:
        raise RequestError("write KEY=VALUE, as in recipe.epochs=5", where)
    keys = [part.strip("\"'") for part in re.findall(_PART, found[1])]
    value = _value(found[2].strip(), where)
    plain = content.model_dump()
    for entry in plain["models"]:
        if entry["external"] is not None:
            for key in OF_TRAINING:
                del entry[key]
    for path in _paths(plain, keys, where):
        _put(plain, path, copy.deepcopy(value), where)
    return check_grid(plain, where)


def _value(text: str, where: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if not text or text[0] in "[{\"'" or "\n" in text:
            raise RequestError(f"the value is not TOML: {error}", where) from None
        return text
    if len(read) > 1:
        raise RequestError("set one key at a time", where)
    return read["value"]


def _paths(plain: dict[str, Any], keys: Sequence[str], where: str) -> Iterator[list[str]]:
    """The places that a key means, with ``recipe`` written out."""
    if keys[0] != "models" or len(keys) == 1:
        yield _spelled(keys, GridFile, where)
        return
    models: list[Any] = plain["models"]
    numbered = keys[1].isdecimal()
    if numbered and len(keys) == 2:
        yield list(keys)
        return
    inner = _spelled(keys[1 + numbered :], ModelEntry, where)
    suits = [str(at) for at, entry in enumerate(models) if inner[0] in entry or inner[0] not in OF_TRAINING]
    for position in [keys[1]] if numbered else suits:
        yield ["models", position, *inner]


def _spelled(keys: Sequence[str], table: type[GridFile | ModelEntry], where: str) -> list[str]:
    """A key of a table that exists, with ``recipe`` written out."""
    recipe, own = Recipe.field_names(), tuple(table.model_fields)
    spelled = ["recipe", *keys] if keys[0] in recipe else list(keys)
    if spelled[0] not in own:
        raise RequestError(f'there is no key "{keys[0]}"; {did_you_mean(keys[0], (*own, *recipe))}', where)
    if spelled[0] == "recipe" and len(spelled) > 1 and spelled[1] not in recipe:
        raise RequestError(f'the recipe has no key "{spelled[1]}"; {did_you_mean(spelled[1], recipe)}', where)
    return spelled


def _put(plain: Any, path: Sequence[str], value: Any, where: str) -> None:
    """Set what stands at a path."""
    for depth, key in enumerate(path):
        above = ".".join(path[:depth])
        place: Any = key
        if isinstance(plain, list):
            if not key.isdecimal() or int(key) >= len(plain):
                raise RequestError(f'"{above}" has {len(plain)} items, numbered from 0, and no "{key}"', where)
            place = int(key)
        elif not isinstance(plain, dict):
            raise RequestError(f'"{above}" is {json.dumps(plain)}, which has no keys; set it whole', where)
        if depth == len(path) - 1:
            plain[place] = value
        elif place not in plain and isinstance(plain, dict):
            raise RequestError(f'"{above}" has no key "{key}"; {did_you_mean(key, plain)}', where)
        else:
            plain = plain[place]
