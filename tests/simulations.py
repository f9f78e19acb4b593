"""Cases of simulations: numbers of classes and images, and how rates differ between classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CLASSES = (3, 10, 100)
SPREADS = {"equal": None, "differ": 50.0, "differ widely": 5.0}
"""How rates differ between classes: not, or as beta variables of that concentration."""


def class_counts(kind: str, classes: int, n: int) -> Array:
    """Images by class: as many of each, or falling to a twentieth of the most."""
    weights = np.ones(classes) if kind == "balanced" else np.geomspace(1, 1 / 20, classes)
    counts: Array = np.maximum(2, np.round(weights / weights.sum() * n)).astype(int)
    return counts


def class_rates(rng: np.random.Generator, rate: float, spread: float | None, classes: int) -> Array:
    near = min(rate, 1 - rate) * rng.uniform(0.75, 1.25)
    mean = near if rate <= 0.5 else 1 - near
    return np.full(classes, mean) if spread is None else rng.beta(mean * spread, (1 - mean) * spread, size=classes)


@dataclass(frozen=True)
class Case:
    classes: int
    n: int
    kind: str
    spread: str
    rate: float

    @property
    def is_discrete(self) -> bool:
        """Whether so few images of a class are expected to be the rarer of right and wrong that counts are coarse."""
        return bool(class_counts(self.kind, self.classes, self.n).min() * min(self.rate, 1 - self.rate) < 5)


def cases(classes: Sequence[int], sizes: Sequence[int], rates: Sequence[float]) -> Iterator[Case]:
    for found in itertools.product(classes, sizes, ("balanced", "imbalanced"), SPREADS, rates):
        case = Case(*found)
        if case.n >= 2 * case.classes:
            yield case


def report(title: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """A line for each name: figures in percent by column."""
    columns = sorted({column for cells in found.values() for column, _ in cells})
    print(f"\n{title}\n{'':46}" + "".join(f"{column:>8g}" for column in columns))
    for name, cells in found.items():
        shares = [[share for at, share in cells if at == column] for column in columns]
        print(f"{name:46}" + "".join(f"{100 * np.mean(one):8.1f}" if one else f"{'–':>8}" for one in shares))
