"""Attacked images of a cell, as they were judged."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robbench.core.errors import RequestError
from robbench.results.schema import Ints, Record
from robbench.results.store import EXAMPLES, IMAGES, Store


class AdversarialExamples(NamedTuple):
    """Attacked images.

    Attributes:
        images: Exactly as they were judged, float32 in [0, 1], shape ``(n, C, H, W)``.
        labels: True classes, int64, shape ``(n,)``.
        ids: Sample ids, int64, shape ``(n,)``.
    """

    images: NDArray[np.float32]
    labels: Ints
    ids: Ints


def attacked_images(store: Store | None, record: Record, complete: bool) -> AdversarialExamples:
    """What a store keeps of a cell's images; see ``Report.adversarial_examples``.

    Args:
        store: The store; None for a published board.
        record: The cell's.
        complete: Whether to refuse where not all are kept.

    Raises:
        RequestError: If there are none, or not all.
        StoreError: If they are damaged.
    """
    place = f'"{record.spec.model.label}", {record.spec.condition.label}'
    if store is None:
        raise RequestError("a published board holds no images; load the store that it was made from", place)
    if record.spec.condition.kind == "clean":
        raise RequestError("clean images are those of the data set, and are not kept", place)
    folder = store.cell_dir(record.key)
    for name in (IMAGES,) if complete else (IMAGES, EXAMPLES):
        content = store.read_archive(folder / name)
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return AdversarialExamples(arrays["attacked"], arrays["labels"], arrays["ids"])
    kept = "its images were not all kept" if complete else "its images were not kept"
    raise RequestError(f"{kept}; run again with keep_images (robbench run --keep-images)", place)
