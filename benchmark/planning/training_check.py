"""Whether a row can be trained as it is asked for, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from robbench.core.contracts import Architecture, Defense, Objective
from robbench.core.errors import RequestError
from robbench.core.global_rng import seeded
from robbench.data.dataset import Dataset
from robbench.planning.component_spec import Choice
from robbench.training.recipe import Recipe


def check_training(
    recipe: Recipe, objective: Choice[Objective], defenses: Sequence[Choice[Defense]], dataset: Dataset, where: str
) -> None:
    """See that recipe, objective and defenses of a row go together.

    Args:
        recipe: The recipe.
        objective: The objective.
        defenses: The defenses, first to last.
        dataset: What is trained on.
        where: File and entry, as ``grid.toml: key "models.0``.

    Raises:
        RequestError: If they do not, naming which.
    """
    if (unfit := recipe.refusal()) is not None:
        raise RequestError(f'{where}.recipe": {unfit}')
    if recipe.keep == "robust" and "linf" not in dataset.eps:
        raise RequestError(f'{where}.recipe": keep = "robust": the data set has no reference size in linf')
    losses = [choice for choice in defenses if type(choice.component).training_loss is not Defense.training_loss]
    for choice in losses:
        defense, last = choice.component, losses[-1]
        if defense.uses_scores and choice is not last:
            raise RequestError(f'{where}.defense": "{choice.label}" sees no loss after it; put "{last.label}" first')
        if (defense.uses_scores or defense.mixes_labels) and not objective.component.trains_scores:
            need = "is a loss on scores" if defense.uses_scores else "mixes labels"
            raise RequestError(f'{where}.defense": "{choice.label}" {need}, which "{objective.label}" has no loss for')
    mixing = next((choice for choice in losses if choice.component.mixes_labels), None)
    hard = next((choice for choice in losses if not choice.component.takes_mixed_labels), None)
    if mixing and hard:
        raise RequestError(f'{where}.defense": "{mixing.label}" mixes labels, which "{hard.label}" cannot take')
    handing = [choice for choice in defenses if type(choice.component).final_weights is not Defense.final_weights]
    if len(handing) > 1:
        first, second = handing[0].label, handing[1].label
        raise RequestError(f'{where}.defense": "{first}" and "{second}" both say which weights are kept; leave one out')


def check_network(
    architecture: Choice[Architecture],
    objective: Choice[Objective],
    defenses: Sequence[Choice[Defense]],
    shape: tuple[int, int, int],
    num_classes: int,
    where: str,
) -> None:
    """See that there is a network for a row's images, and that its defenses can train it.

    Args:
        architecture: The architecture.
        objective: The objective.
        defenses: The defenses.
        shape: Of the images, ``(C, H, W)``.
        num_classes: Number of classes.
        where: File and entry, as ``grid.toml: key "models.0``.

    Raises:
        RequestError: If not.
    """
    size = " × ".join(map(str, shape[1:]))
    if (reason := architecture.component.refusal(shape)) is not None:
        raise RequestError(f'{where}.architecture": {architecture.label} for images of {size}: {reason}')
    asking = [one for one in defenses if type(one.component).network_refusal is not Defense.network_refusal]
    if not asking:
        return
    with seeded(0):
        backbone = architecture.component.build(shape)
        model = objective.component.build(backbone, num_classes, torch.arange(num_classes)).eval()
    for choice in asking:
        if (reason := choice.component.network_refusal(model, shape)) is not None:
            raise RequestError(f'{where}.defense": "{choice.label}" cannot train "{architecture.label}": {reason}')
