"""Records of earlier schemas, as plain data, brought to the newest one."""

from __future__ import annotations

import re
from typing import Any

_RENAMED = {"randomised": "randomized"}
_REWORDED = (
    ("decides for the same class on all ", "predicts the same class for all "),
    (" unchanged images", " clean images"),
    (" withstand ", " are robust to "),
    ("images are fooled, the decision not", "images are fooled, the prediction is not"),
)
"""Texts of the audit, as they were up to schema 2 and as they are."""


def migrated(data: Any, newest: int) -> Any:
    """A record of any known schema as one of the newest; the data are changed.

    Args:
        data: A record as plain data.
        newest: Number of the newest schema.

    Raises:
        ValueError: If it is no record, or of a schema that is not known.
    """
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema > newest:
        raise ValueError(f"record schema {schema!r} is not known to this robbench (it knows up to {newest})")
    try:
        if schema < 2:
            _from_1(data)
        if schema < 3:
            _from_2(data)
        if schema < 4:
            _from_3(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of schema {schema}: {error!r}") from None
    data["schema_version"] = newest
    return data


def _from_1(data: dict[str, Any]) -> None:
    for stage in data["spec"]["condition"].get("stages", ()):
        steps = stage["parameters"].get("steps", 1)
        stage["gradient_steps"] = (steps if isinstance(steps, int) else 1) if stage["white_box"] else 0
    data["flags"] = dict.fromkeys(data.get("flags", ()), "")


def _from_2(data: dict[str, Any]) -> None:
    model = data["spec"]["model"]
    for name in ("label", "start"):
        # "cross-entropy · clean" was the row of a model without a defense.
        if model.get(name):
            model[name] = row_name(model[name])
    data["traits"] = [_RENAMED.get(trait, trait) for trait in data.get("traits", ())]
    for marks in ("flags", "cautions"):
        data[marks] = {_RENAMED.get(name, name): _reworded(text) for name, text in data.get(marks, {}).items()}


def _from_3(data: dict[str, Any]) -> None:
    dataset = data["spec"]["dataset"]
    if dataset["name"] in ("image-folder", "image-folder-imbalanced"):
        # Where the folder lies was part of what a data set is called.
        path = f"path={dataset['parameters'].pop('path', '')}"
        for text, left in ((f"[{path}]", ""), (f"[{path},", "["), (f",{path}", "")):
            dataset["label"] = dataset["label"].replace(text, left)
    for stage in data["spec"]["condition"].get("stages", ()):
        follows_margins, loss = stage.pop("margin_loss", False), stage["parameters"].get("loss")
        if stage.get("source") is None and stage["name"] in ("strong", "autoattack"):
            stage["losses"] = ("ce", "margin", "dlr")
        elif loss in ("ce", "margin", "dlr"):
            stage["losses"] = (loss,)
        elif stage["name"].startswith("art:") and stage["white_box"] and not stage["bounded"]:
            stage["losses"] = ("margin",)
        elif follows_margins or stage["white_box"]:
            stage["losses"] = ("margin",) if follows_margins else ("ce",)


def row_name(label: str) -> str:
    """The label of a row as it is spelled since schema 3."""
    return re.sub(r"(?<= · )clean(?= · |$)", "no defense", label)


def _reworded(text: str) -> str:
    for before, after in _REWORDED:
        text = text.replace(before, after)
    return text
