"""The trials of a search, as a file that is kept after each of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robbench.core.atomic_io import write_atomically
from robbench.core.errors import RequestError, StoreError
from robbench.training.recipe import Recipe

_MEASURED = ("balanced_accuracy", "validation_loss", "seconds")
FIELDS = ("optimizer", "lr", "schedule", "weight_decay", "batch_size")
"""The fields of a recipe that are searched."""
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


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Keep trials as CSV.

    Raises:
        StoreError: If they cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for trial in trials:
        measured = (trial.balanced_accuracy, trial.validation_loss, trial.seconds)
        chosen = (getattr(trial.recipe, name) for name in FIELDS)
        writer.writerow([trial.number, trial.state, *measured, *chosen, " ".join(trial.models)])
    write_atomically(path, text.getvalue())


def read_trials(path: Path, own: Recipe) -> list[Trial]:
    """The trials that were kept, in order; none where there is no file.

    Args:
        path: The file.
        own: The recipe of the row, for the fields that are not searched.

    Raises:
        StoreError: If they cannot be read.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if header != _HEADER:
            raise ValueError("its columns are others")
        return [_read(dict(zip(_HEADER, line, strict=True)), own.parameters()) for line in lines]
    except (OSError, ValueError, csv.Error, RequestError) as error:
        raise StoreError(f"cannot read {path}: {error}; remove it and search again") from error


def _read(line: Mapping[str, str], own: Mapping[str, Any]) -> Trial:
    accuracy, loss, seconds = (float(line[name]) if line[name] else None for name in _MEASURED)
    if line["state"] not in ("done", "diverged") or (line["state"] == "done") != (accuracy is not None):
        raise ValueError(f"trial {line['trial']} is damaged")
    return Trial(
        number=int(line["trial"]),
        state="diverged" if accuracy is None else "done",
        recipe=Recipe.make({**own, **{name: line[name] for name in FIELDS}}, f"trial {line['trial']}"),
        models=tuple(line["models"].split()),
        balanced_accuracy=accuracy,
        validation_loss=loss,
        seconds=seconds,
    )
