"""Grid files for tests: small valid ones, written as TOML from plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def toml(value: object) -> str:
    """A value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value)


def grid_text(content: Mapping[str, object]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in content.items())


def write_grid(path: Path, content: Mapping[str, object]) -> Path:
    path.write_text(grid_text(content), encoding="utf-8")
    return path


def tiny(**changes: Any) -> dict[str, Any]:
    """A grid whose model trains in a fraction of a second."""
    return {
        "datasets": ["digits[train_fraction=0.1]"],
        "conditions": ["clean", "fgsm@ref"],
        "recipe": {"epochs": 1},
        "models": [{}],
        **changes,
    }
