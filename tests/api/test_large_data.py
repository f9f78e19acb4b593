"""Models on data sets that stay in their files, and images that are kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from robbench.api.evaluation import evaluate
from robbench.api.report import Report
from robbench.data import lazy_images
from robbench.data.lazy_images import LazyImages
from robbench.planning import external_rows

ATTACKS: list[Any] = ["fgsm@8/255", {"chain": "pgd[steps=3]@8/255", "sample": 6}, "fgsm@8/255->next"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ROBBENCH_DATA", raising=False)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            image.save(tmp_path / "in" / name / f"{number}.png")
    return tmp_path / "in"


def asked(folder: Path, limit: int | None) -> Report:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    data = {"name": "image-folder", "path": str(folder), "size": 8}
    return evaluate(model, data, attacks=ATTACKS, audit=False, limit=limit, device="cpu")


@pytest.mark.parametrize("limit", [None, 12])
def test_outcomes_are_those_of_a_small_data_set(
    folder: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = asked(folder, limit)
    decoded: list[int] = []
    original = LazyImages.__getitem__

    def counted(self: LazyImages, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        decoded.extend(np.atleast_1d(index).tolist())
        return original(self, index)

    monkeypatch.setattr(LazyImages, "__getitem__", counted)
    monkeypatch.setattr(lazy_images, "RESIDENT", 0)
    monkeypatch.setattr(external_rows, "QUESTIONED", 5)
    large = asked(folder, limit)
    assert large.conditions == small.conditions
    for label in small.conditions:
        found, wanted = large.outcome(label), small.outcome(label)
        np.testing.assert_array_equal(found.ids, wanted.ids)
        for name in ("labels", "clean", "final", "linf", "l2", "forwards", "backwards"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6, err_msg=name)
    tested = {number for label in small.conditions for number in small.outcome(label).ids.tolist()}
    assert decoded
    assert len(set(decoded) - tested) <= 5, "what is not drawn is not decoded"
