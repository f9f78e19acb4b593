"""How a training went, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from robbench.training.recipe import Keep


@dataclass(frozen=True)
class Epoch:
    """One line of a training history.

    ``passes`` counts images that went forward and backward, ``forward_only`` those that went no further than forward.
    ``validation_robust_accuracy`` is measured where something depends on it.
    """

    epoch: int
    lr: float
    passes: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    validation_robust_accuracy: float | None = None
    forward_only: int = 0

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers: the last step can spoil weights whose own loss was still one."""
        return math.isfinite(self.train_loss) and math.isfinite(self.validation_loss)


def score(line: Epoch, keep: Keep) -> float:
    """What an epoch is chosen by."""
    if keep == "last":
        return line.epoch
    return line.validation_balanced_accuracy if keep == "best" else line.validation_robust_accuracy or 0.0


def kept(history: Sequence[Epoch], keep: Keep) -> Epoch:
    """The epoch whose weights are the model, the first of equal ones."""
    return max(history, key=lambda line: (score(line, keep), -line.epoch))


def as_csv(history: Sequence[Epoch]) -> str:
    """A line an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Epoch.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(line) for line in history)
    return text.getvalue()
