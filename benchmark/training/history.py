"""How a training went, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from robbench.training.recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """One line of a training history; ``passes`` counts images that went forward and backward."""

    epoch: int
    lr: float
    passes: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers: the last step can spoil weights whose own loss was still one."""
        return math.isfinite(self.train_loss) and math.isfinite(self.validation_loss)


def kept(history: Sequence[Epoch], recipe: Recipe) -> Epoch:
    """The epoch whose weights are the model."""
    if recipe.keep == "last":
        return history[-1]
    return max(history, key=lambda line: (line.validation_balanced_accuracy, -line.epoch))


def as_csv(history: Sequence[Epoch]) -> str:
    """A line an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Epoch.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(line) for line in history)
    return text.getvalue()
