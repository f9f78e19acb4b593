"""What data sets and metrics are held to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robbench.conformance.components import CLASSES, breaches_told, nothing_left_behind
from robbench.conformance.rules import NotApplicable, Rule, demand
from robbench.core.errors import RequestError
from robbench.core.metric import Metric
from robbench.core.threat_model import LP_NORMS
from robbench.data.cache import image_digests, load, locate
from robbench.data.dataset import Dataset, DecodedImages
from robbench.data.lazy_images import LazyImages
from robbench.data.splits import Splits, split
from robbench.evaluation.metrics._built_in import built_in_metrics
from robbench.evaluation.scoring import figures_of, refuse_taken
from robbench.evaluation.verdicts import union
from robbench.results.schema import Outcome
from robbench.training.recipe import Recipe

# --- data sets


@dataclass(frozen=True)
class DatasetFiles:
    """A data set with what its files hold; looked for, read and split once."""

    dataset: Dataset

    @cached_property
    def stamp(self) -> str | RequestError:
        """What ``locate`` found, or why it found nothing."""
        try:
            return locate(self.dataset, None).stamp
        except RequestError as error:
            return error

    @cached_property
    def content(self) -> tuple[DecodedImages, Splits]:
        """The images and their splits.

        Raises:
            NotApplicable: If the files are not there.
        """
        if isinstance(self.stamp, RequestError):
            raise NotApplicable("its files are not there")
        with tempfile.TemporaryDirectory() as folder:
            # In memory, since the files that they are mapped from go.
            decoded: DecodedImages = _in_memory(load(self.dataset, None, Path(folder)))
        return decoded, split(self.dataset, decoded)


def _in_memory(value: Any) -> Any:
    """The same without arrays that are mapped from files."""
    copied = {name: np.array(held) for name, held in vars(value).items() if isinstance(held, np.memmap)}
    inner = {name: _in_memory(held) for name, held in vars(value).items() if isinstance(held, LazyImages)}
    return replace(value, **copied, **inner)


def _located(files: DatasetFiles) -> str:
    if isinstance(files.stamp, RequestError):
        raise NotApplicable(str(files.stamp))
    demand(files.stamp == locate(files.dataset, None).stamp, "the stamp changes though no file did")
    return files.stamp


def _read_twice(files: DatasetFiles) -> str:
    decoded, _ = files.content
    raw = files.dataset.locate(None)[1]()
    every = range(len(raw.labels))
    same = image_digests(raw.images, every) == image_digests(decoded.images, every)
    demand(len(raw.labels) == len(decoded.labels) and same, "the images are others when they are read again")
    demand(np.array_equal(raw.labels, decoded.labels), "the labels are others when they are read again")
    return f"{len(decoded.labels)} images, {len(decoded.class_names)} classes, {decoded.duplicates} duplicates"


def _splits(files: DatasetFiles) -> str:
    _, splits = files.content
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    together = np.concatenate(list(parts.values()))
    demand(len(np.unique(together)) == len(together), "an image is in two splits")
    for name, index in parts.items():
        demand(min(splits.counts(index)) > 0, f"a class has no {name} image")
    return ", ".join(f"{len(index)} {name}" for name, index in parts.items())


def _sizes(files: DatasetFiles) -> str:
    for norm, sizes in files.dataset.eps.items():
        rising = all(low < high for low, high in zip(sizes.values, sizes.values[1:], strict=False))
        demand(rising and all(size > 0 for size in sizes.values), f"{norm}: sizes must be positive and rise")
        demand(sizes.reference in sizes.values, f"{norm}: the reference {sizes.reference} is none of the sizes")
    return ", ".join(files.dataset.eps) or "none: conditions must write theirs out"


def _recipe(files: DatasetFiles) -> str:
    recipe = files.dataset.recipe
    Recipe.make({name: value for name, value in recipe.items() if name != "architecture"}, "recipe")
    return ", ".join(f"{name} {value}" for name, value in recipe.items())


# --- metrics


def _outcomes() -> Mapping[str, Outcome]:
    rng, count = np.random.default_rng(0), 40
    labels, clean, final = rng.integers(0, CLASSES, (3, count))
    norms = rng.uniform(0, 1, (4, count))
    attack = Outcome.of(
        CLASSES,
        "attack",
        ids=np.arange(count),
        labels=labels,
        clean=clean,
        final=final,
        rounded=final,
        attempted=clean == labels,
        **dict(zip(LP_NORMS, norms, strict=True)),
        forwards=np.full(count, 3.0),
        backwards=np.full(count, 2.0),
    )
    draws = np.stack([final, *rng.integers(0, CLASSES, (9, count))], axis=1)
    every = np.where(np.arange(CLASSES) == labels[:, None], -1, rng.integers(0, CLASSES, (count, CLASSES)))
    nothing: dict[str, Any] = {name: getattr(attack, name)[:0] for name in Outcome.arrays()}
    return {
        "attack": attack,
        "clean": replace(attack, kind="clean", final=clean.copy(), rounded=clean.copy(), attempted=clean < 0),
        "natural": replace(attack, kind="natural", draws=draws, attempted=clean >= 0),
        "chain": replace(attack, kind="chain", attempted=clean >= 0),
        "certificate": replace(
            attack,
            kind="certificate",
            final=clean.copy(),
            certified=attack.attempted & (labels > 0),
            radius=norms[0],
        ),
        "union": union([attack, replace(attack, final=clean.copy())]),
        "targeted": replace(attack, targets=(labels + 1) % CLASSES),
        "every target": replace(attack, targets=(labels + 1) % CLASSES, every_target=every),
        "no sample": replace(attack, **nothing),
    }


def _figures(metric: Metric) -> str:
    told = []
    for name, outcome in _outcomes().items():
        with breaches_told(f"{name}: "):
            figures = figures_of(metric, outcome, type(metric).__name__)
        told.append(f"{len(figures)} of {name}")
    return ", ".join(told)


def _own_names(metric: Metric) -> str:
    if type(metric) in map(type, built_in_metrics().values()):
        raise NotApplicable("the metric is built in")
    names: dict[str, None] = {}
    for name, outcome in _outcomes().items():
        with breaches_told(f"{name}: "):
            figures = figures_of(metric, outcome, type(metric).__name__)
            refuse_taken(figures, {}, type(metric).__name__)
        names |= dict.fromkeys(figure.partition("/")[0] for figure in figures)
    return ", ".join(names)


def _pure(metric: Metric) -> str:
    for name, outcome in _outcomes().items():
        before = outcome.sha256()
        with nothing_left_behind():
            first, again = (dict(metric.measure(outcome)) for _ in range(2))
        demand(first == again, f"{name}: the second time the figures are others")
        demand(outcome.sha256() == before, f"{name}: the outcome is written to")
    return ""


DATASETS = (
    Rule("its files are found", _located),
    Rule("reading is repeatable", _read_twice),
    Rule("splits have nothing in common", _splits),
    Rule("sizes of change are in order", _sizes),
    Rule("its recipe is one", _recipe),
)
METRICS = (
    Rule("figures are measures", _figures),
    Rule("figures have names of their own", _own_names),
    Rule("outcomes stay as they are", _pure),
)
