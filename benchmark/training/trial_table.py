"""Trials of a search as a table: for people, and as an earlier version kept them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robbench.core.errors import RequestError, StoreError
from robbench.training.recipe import Recipe

FIELDS = ("optimizer", "lr", "schedule", "weight_decay", "batch_size")
"""The fields of a recipe that are searched."""
_MEASURED = ("balanced_accuracy", "validation_loss", "seconds")
_HEADER = ["trial", "state", *_MEASURED, *FIELDS, "models"]


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried.

    Attributes:
        number: Its place in the search, from 1.
        state: Whether training came to its end or its loss stopped being a number, with any of the seeds.
        recipe: The recipe.
        models: Keys of the models, one per seed.
        balanced_accuracy: Of the weights that the recipe keeps, on the validation images; mean over seeds. None where
            training diverged.
        validation_loss: Of the same weights.
        seconds: That training took, whenever it was done; summed over seeds.
    """

    number: int
    state: Literal["done", "diverged"]
    recipe: Recipe
    models: tuple[str, ...]
    balanced_accuracy: float | None = None
    validation_loss: float | None = None
    seconds: float | None = None


def trials_csv(trials: Sequence[Trial]) -> str:
    """Trials as CSV, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for trial in trials:
        measured = (getattr(trial, name) for name in _MEASURED)
        chosen = (getattr(trial.recipe, name) for name in FIELDS)
        writer.writerow([trial.number, trial.state, *measured, *chosen, " ".join(trial.models)])
    return text.getvalue()


def read_trials(path: Path, own: Recipe) -> list[Trial]:
    """Trials that were kept as CSV.

    Args:
        path: The file.
        own: The recipe whose other fields they share.

    Raises:
        StoreError: If it cannot be read.
    """

    def trial(line: Mapping[str, str]) -> Trial:
        accuracy, loss, seconds = (float(line[name]) if line[name] else None for name in _MEASURED)
        state: Literal["done", "diverged"] = "diverged" if accuracy is None else "done"
        if line["state"] != state:
            raise ValueError(f"trial {line['trial']} is damaged")
        fields = {**own.parameters(), **{name: line[name] for name in FIELDS}}
        recipe = Recipe.make(fields, f"trial {line['trial']}")
        return Trial(int(line["trial"]), state, recipe, tuple(line["models"].split()), accuracy, loss, seconds)

    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if header != _HEADER:
            raise ValueError("its columns are others")
        return [trial(dict(zip(_HEADER, line, strict=True))) for line in lines]
    except (OSError, ValueError, csv.Error, RequestError) as error:
        raise StoreError(f"cannot read {path}: {error}; remove it and search again") from error
