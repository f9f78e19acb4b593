"""Maps of embeddings without UMAP, which takes half a minute to be compiled in every process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest


class Axes:
    """Stands in for UMAP: the first two coordinates, once it was fitted."""

    fitted: tuple[int, ...] = ()

    def __init__(self, **options: object) -> None:
        assert options["random_state"] is not None
        assert options["n_jobs"] == 1

    def fit(self, values: np.ndarray) -> Axes:
        type(self).fitted += (len(values),)
        self.embedding_ = values[:, :2]
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        return values[:, :2]


def map_by_axes(patch: pytest.MonkeyPatch) -> None:
    """Let boards be drawn without UMAP in this process."""
    patch.setattr(Axes, "fitted", ())
    patch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Axes))
