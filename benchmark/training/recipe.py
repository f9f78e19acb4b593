"""How a network is trained, apart from its objective and its defense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from robbench.core.component import Component, OmittedAtDefault

Keep: TypeAlias = Literal["last", "best", "robust"]


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
        schedule: ``constant``, ``cosine`` (to zero), ``one-cycle`` (linear from a 25th of ``lr`` up over 30 % of the
            steps, then linear down to next to zero; Smith and Topin, 2019), or ``steps``: ``gamma`` times the rate
            after each of ``milestones``.
        keep: The epoch whose weights are the model: the ``last``, the ``best`` by balanced validation accuracy, or the
            most ``robust`` by balanced accuracy of validation images under PGD-10 at the data set's reference in Linf
            (Rice et al., "Overfitting in adversarially robust deep learning", 2020).
        train_on: ``train``, or ``train+test``: a model to ship, that has seen the test images behind what the balancer
            made of the training set. It is never scored, since there is no unseen data left to score it on.
        nesterov: Whether ``sgd`` looks ahead (Nesterov, 1983).
        milestones: Epochs, rising, after which ``steps`` lowers the rate.
        gamma: What it is lowered by.
        warmup: Share of the steps over which the rate grows linearly to that of the schedule.
        patience: Epochs without a better one, by what ``keep`` says, after which training stops; 0 for no such end.
    """

    epochs: Annotated[int, Field(ge=1)] = 10
    min_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=2)] = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "one-cycle", "steps"] = "constant"
    keep: Keep = "last"
    train_on: Literal["train", "train+test"] = "train"
    nesterov: Annotated[bool, OmittedAtDefault] = False
    milestones: Annotated[tuple[Annotated[int, Field(ge=1)], ...], OmittedAtDefault] = ()
    gamma: Annotated[float, Field(gt=0, lt=1), OmittedAtDefault] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1), OmittedAtDefault] = 0.0
    patience: Annotated[int, Field(ge=0), OmittedAtDefault] = 0

    def refusal(self) -> str | None:
        """Why its fields do not go together, or None; asked of a whole recipe, since grids give it in parts."""
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            return 'nesterov = true needs optimizer = "sgd" and a momentum'
        if bool(self.milestones) != (self.schedule == "steps"):
            return 'schedule = "steps" and milestones need each other'
        if list(self.milestones) != sorted(set(self.milestones)):
            return f"milestones = {list(self.milestones)} do not rise"
        if self.warmup and self.schedule == "one-cycle":
            return 'schedule = "one-cycle" has a warmup of its own'
        if self.patience and self.keep == "last":
            return 'patience needs keep = "best" or "robust"'
        return None

    @property
    def unseen(self) -> bool:
        """Whether the test images are kept from training."""
        return self.train_on == "train"

    def epochs_for(self, steps_per_epoch: int) -> int:
        """The number of epochs to run."""
        return max(self.epochs, math.ceil(self.min_steps / max(1, steps_per_epoch)))

    def toml(self) -> str:
        """The recipe as a line of a grid; every field, so that it means the same in any grid."""
        return "recipe = { " + ", ".join(f"{name} = {_toml(value)}" for name, value in vars(self).items()) + " }"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else repr(value)
