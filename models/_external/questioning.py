"""Whether a network is given images normalized otherwise than those that it was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.batches import fitting
from robbench.core.contracts import Classifier
from robbench.models._external.classifier import ExternalClassifier
from robbench.models._external.loading import External
from robbench.models._external.normalization import plausible

_BATCH = 128
_SURE = 9.0
"""McNemar's statistic from which a difference is no chance: three standard deviations."""


def other_normalizations(external: External, dataset: str = "") -> dict[str, Classifier]:
    """The same network under the other normalizations that it may have been trained with, by their names.

    Args:
        external: The model; one that takes images as they are has no others.
        dataset: Name of the data set; presets of that name are among them.
    """
    model = external.model
    if not isinstance(model, ExternalClassifier):
        return {}
    channels = int(external.facts["channels"])
    own = model.normalization.wide(channels)
    others = plausible(dataset, channels).items()
    return {name: model.normalized_by(one) for name, one in others if one.wide(channels) != own}


def questioned(external: External, images: Tensor, labels: Tensor, dataset: str = "") -> str | None:
    """A line if another normalization more than doubles the accuracy on some images, or None.

    Args:
        external: The model.
        images: A few hundred, float in [0, 1], shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        dataset: Name of the data set.
    """
    right = _right(external.model, images, labels)
    if 2 * int(right.sum()) >= len(labels):
        return None
    found = {name: _right(model, images, labels) for name, model in other_normalizations(external, dataset).items()}
    best = max(found, key=lambda name: int(found[name].sum()), default="")
    if not best or 2 * int(right.sum()) >= int(found[best].sum()) or not _sure(right, found[best]):
        return None
    own, other = (100 * float(one.double().mean()) for one in (right, found[best]))
    return (
        f"{own:.1f} % clean accuracy on {len(labels)} images, {other:.1f} % with the normalization "
        f'"{best}"; pass normalization = "{best}" if it was trained so'
    )


def _right(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.predict(part) for part in images.split(fitting(_BATCH, images.shape[1:]))]) == labels


def _sure(own: Tensor, other: Tensor) -> bool:
    lost, won = int((own & ~other).sum()), int((other & ~own).sum())
    return (won - lost) ** 2 > _SURE * (won + lost)
