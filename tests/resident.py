"""Images of data sets that are small, and so in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robbench.core.batches import StoredSamples
from robbench.core.contracts import Samples


def pixels(images: object) -> NDArray[Any]:
    assert isinstance(images, np.ndarray)
    return images


def held(samples: StoredSamples) -> Samples:
    assert isinstance(samples, Samples)
    return samples
