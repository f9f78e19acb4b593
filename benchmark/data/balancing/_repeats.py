"""Samples that are added to a training set."""

from __future__ import annotations

import torch
from torch import Tensor

from robbench.core.contracts import Samples

FIRST_NEW_ID = 2**40
"""Ids of added samples begin here, above every position among decoded images."""


def fresh_ids(samples: Samples, count: int) -> Tensor:
    """Ids that no sample has yet: an id seeds a sample's random draws, so that copies of an image draw differently."""
    first = max(FIRST_NEW_ID, int(samples.ids.max()) + 1) if len(samples) else FIRST_NEW_ID
    return torch.arange(first, first + count)


def append(samples: Samples, images: Tensor, labels: Tensor) -> Samples:
    """The samples with others, which get ids of their own, behind them."""
    return Samples(
        torch.cat([samples.images, images]),
        torch.cat([samples.labels, labels]),
        torch.cat([samples.ids, fresh_ids(samples, len(labels))]),
    )


def repeat(samples: Samples, index: Tensor) -> Samples:
    """Samples by index, sorted; the first of several equal ones keeps its id, the others get ids of their own."""
    index = index.sort().values
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[1:] == index[:-1]
    ids = samples.ids[index]
    ids[again] = fresh_ids(samples, int(again.sum()))
    return Samples(samples.images[index], samples.labels[index], ids)
