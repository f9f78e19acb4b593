"""Ways to ask for a data set and to count what a split holds."""

from __future__ import annotations

from robbench.core.registry import Registry
from robbench.data.dataset import Dataset
from robbench.data.splits import Splits


def preset(name: str) -> Dataset:
    entry = Registry(installed=False).entry("dataset", name)
    dataset = entry.cls.make(entry.mark.preset, name)
    assert isinstance(dataset, Dataset)
    return dataset


def counts(splits: Splits) -> tuple[tuple[int, ...], ...]:
    return tuple(splits.counts(part) for part in (splits.train, splits.validation, splits.test))
