"""Equal class counts by leaving images out and repeating others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from robbench.core.contracts import Balancer, Samples
from robbench.core.registry import register_balancer
from robbench.data.balancing._repeats import repeat
from robbench.data.dataset import Dataset


@register_balancer("sampler")
@dataclass(frozen=True)
class Sampler(Balancer):
    """Random over- and undersampling to equal class counts; the set keeps its size.

    Where the size is no multiple of the number of classes, the first classes get one image more.
    """

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """As many images of each class: some of the larger classes, all of the smaller ones and repetitions."""
        labels = np.unique(samples.labels.numpy()).tolist()
        each, more = divmod(len(samples), len(labels))
        return _resampled(samples, {label: each + (rank < more) for rank, label in enumerate(labels)}, seed), ()


@register_balancer("oversampling")
@dataclass(frozen=True)
class Oversampling(Balancer):
    """Random oversampling: images of smaller classes are repeated up to the count of the largest."""

    def resample(self, samples: Samples, dataset: Dataset, seed: int) -> tuple[Samples, tuple[str, ...]]:
        """All images, and repetitions of those in smaller classes."""
        counts = np.bincount(samples.labels.numpy())
        return _resampled(samples, dict.fromkeys(np.flatnonzero(counts).tolist(), int(counts.max())), seed), ()


def _resampled(samples: Samples, wanted: dict[int, int], seed: int) -> Samples:
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.under_sampling import RandomUnderSampler

    index: NDArray[np.int64] = np.arange(len(samples))[:, None]
    labels = samples.labels.numpy()
    counts = np.bincount(labels)
    fewer = {label: count for label, count in wanted.items() if count < counts[label]}
    more = {label: count for label, count in wanted.items() if count > counts[label]}
    for sampler, strategy in ((RandomUnderSampler, fewer), (RandomOverSampler, more)):
        if strategy:
            index, labels = sampler(sampling_strategy=strategy, random_state=seed % 2**32).fit_resample(index, labels)
    return repeat(samples, torch.from_numpy(index[:, 0]))
