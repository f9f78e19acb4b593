"""Made-up images between real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robbench.core.contracts import Balancer, Samples, as_stored, to_float
from robbench.core.errors import RequestError
from robbench.core.registry import register_balancer
from robbench.data.balancing._repeats import append
from robbench.data.dataset import Dataset


@register_balancer("smote")
@dataclass(frozen=True)
class SMOTE(Balancer):
    """SMOTE on the pixels, up to the count of the largest class (Chawla et al., 2002).

    A made-up image is x + u·(y − x): x an image of the class, y one of its nearest neighbors in the class, u uniform in
    [0, 1]; then rounded to 8 bits.

    Attributes:
        neighbors: How many nearest neighbors y is drawn from; one less than the images of the smallest class where that
            is fewer.
    """

    neighbors: Annotated[int, Field(ge=1)] = 5

    def refusal(self, counts: Tensor) -> str | None:
        """A single image has no neighbor in its class."""
        if bool((counts == counts.max()).all()) or int(counts.min()) > 1:
            return None
        return "SMOTE needs at least two training images of every class"

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """All images, and made-up ones behind them.

        Raises:
            RequestError: If a class has a single image.
        """
        from imblearn.over_sampling import SMOTE as Imblearn

        counts = torch.bincount(samples.labels)
        counts = counts[counts > 0]
        reason = self.refusal(counts)
        if reason:
            raise RequestError(reason)
        if bool((counts == counts.max()).all()):
            return samples, ()
        neighbors = min(self.neighbors, int(counts.min()) - 1)
        pixels = to_float(samples.images).flatten(1).numpy()
        sampler = Imblearn(sampling_strategy="not majority", k_neighbors=neighbors, random_state=seed % 2**32)
        mixed, labels = sampler.fit_resample(pixels, samples.labels.numpy())
        # Real images come first in the result, the made-up ones behind them.
        made = as_stored(torch.from_numpy(mixed[len(samples) :]).clamp(0, 1), samples.images)
        images = made.reshape(-1, *samples.images.shape[1:])
        note = f"SMOTE made {len(made)} images from {neighbors} nearest neighbors each"
        return append(samples, images, torch.from_numpy(labels[len(samples) :])), (note,)
