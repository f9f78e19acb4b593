"""Samples batch by batch: those of large data sets are read ahead, and batches are halved where memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robbench.core.contracts import Samples
from robbench.core.errors import warn
from robbench.results.schema import Ints

T = TypeVar("T")

_USUAL = 69 * 69
"""Pixels of the largest images whose batches are whole; those of 224 × 224 pixels are 12 in place of 128."""


class ImageSource(Protocol):
    """Images that are decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)``."""

    def __getitem__(self, index: Ints, /) -> NDArray[np.uint8]:
        """The images at some positions, uint8, shape ``(len(index), C, H, W)``."""


@dataclass(frozen=True)
class LazySamples:
    """Labeled images that are decoded when they are asked for.

    Attributes:
        source: All images of the data set.
        labels: Class indices, int64, shape ``(N,)``.
        ids: Their positions in the source, int64, shape ``(N,)``.
    """

    source: ImageSource
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor) -> LazySamples:
        """Some of the samples, by a mask or indices; nothing is decoded."""
        return LazySamples(self.source, self.labels[index], self.ids[index])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return self.source.shape[1:]


StoredSamples: TypeAlias = Samples | LazySamples


def loaded(samples: StoredSamples) -> Samples:
    """Samples with their images in memory."""
    if isinstance(samples, Samples):
        return samples
    return Samples(torch.from_numpy(samples.source[samples.ids.numpy()]), samples.labels, samples.ids)


def fitting(size: int, image_shape: Sequence[int], device: str = "cpu") -> int:
    """A batch size, on the CPU less for images of more than 69 × 69 pixels: a network keeps 100 MB of a larger one.

    It depends on shape and device alone, since sums in convolutions differ with the size of a batch.

    Args:
        size: Of batches of small images.
        image_shape: ``(C, H, W)``.
        device: Device type.
    """
    return max(1, min(size, size * 3 * _USUAL // math.prod(image_shape))) if device == "cpu" else size


def in_batches(
    samples: StoredSamples,
    size: int,
    work: Callable[[Tensor, Samples], T],
    index: Tensor | None = None,
    halved: Callable[[str], None] = warn,
) -> Iterator[T]:
    """Work on samples batch by batch; the size is halved where memory runs out, and stays so.

    Args:
        samples: The samples. The next batch of those that are lazy is decoded meanwhile.
        size: Samples per batch.
        work: Called with the positions of a batch and the batch.
        index: Positions of the samples to work on; None for all.
        halved: Told when the size is halved.

    Raises:
        Exception: What ``work`` raises; lack of memory only on a single sample.
    """
    index = torch.arange(len(samples)) if index is None else index
    start = 0
    with ThreadPoolExecutor(1) as reader:

        def read(at: int) -> Callable[[], Samples]:
            part = samples[index[at : at + size]]
            return (lambda: part) if isinstance(part, Samples) else reader.submit(loaded, part).result

        def first(count: int) -> tuple[T, int]:
            part = given if count >= len(given) else given[torch.arange(count)]
            return work(index[start : start + len(part)], part), len(part)

        batch = read(start)
        while start < len(index):
            given = batch()
            batch = read(start + len(given))
            (result, done), fits = halving(size, first, halved)
            start += done
            if fits < size:
                size = fits
                batch = read(start)
            yield result


def halving(size: int, work: Callable[[int], T], halved: Callable[[str], None] = warn) -> tuple[T, int]:
    """What comes of work on batches of a size, halved as long as memory runs out, and the size that fits.

    Args:
        size: The first size to try.
        work: Called with a size.
        halved: Told when it is halved.

    Raises:
        Exception: What ``work`` raises; lack of memory only at a size of 1.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            kind = type(error).__name__
        # Outside the handler, where the error no longer holds what was in memory.
        size //= 2
        halved(f"batch size halved to {size}: {kind}")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # On the CPU torch has no type of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
