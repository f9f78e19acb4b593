"""How a network is trained, apart from its objective and its defense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from robbench.core.component import Component


@dataclass(frozen=True)
class Recipe(Component):
    """Optimizer, schedule and length of training.

    Attributes:
        epochs: Passes over the training set.
        min_steps: Least number of optimizer steps; more epochs are run where they would make fewer, so that rows whose
            training sets differ in size can be compared.
        batch_size: Images per step.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        lr: Learning rate at its highest.
        momentum: Momentum of ``sgd``.
        weight_decay: Weight decay.
        schedule: ``constant``, ``cosine`` (to zero), or ``one-cycle`` (linear from a 25th of ``lr`` up over 30 % of the
            steps, then linear down to next to zero; Smith and Topin, 2019).
        keep: Whether the weights of the last epoch or of the best balanced validation accuracy are the model.
        train_on: ``train``, or ``train+test``: a model to ship, that has seen the test images behind what the balancer
            made of the training set. It is never scored, since there is no unseen data left to score it on.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    min_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=2)] = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    keep: Literal["last", "best"] = "last"
    train_on: Literal["train", "train+test"] = "train"

    @property
    def unseen(self) -> bool:
        """Whether the test images are kept from training."""
        return self.train_on == "train"

    def epochs_for(self, steps_per_epoch: int) -> int:
        """The number of epochs to run."""
        return max(self.epochs, math.ceil(self.min_steps / max(1, steps_per_epoch)))

    def toml(self) -> str:
        """The recipe as a line of a grid; every field, so that it means the same in any grid."""
        values = {name: f'"{value}"' if isinstance(value, str) else repr(value) for name, value in vars(self).items()}
        return "recipe = { " + ", ".join(f"{name} = {value}" for name, value in values.items()) + " }"
