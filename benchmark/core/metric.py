"""The contract of metrics, apart from the others since it needs no torch."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

from robbench.core.component import Component
from robbench.results.schema import Measure, Outcome


@dataclass(frozen=True)
class Metric(Component):
    """A figure, or several, that follow from one cell's outcome alone."""

    @abc.abstractmethod
    def measure(self, outcome: Outcome) -> Mapping[str, Measure]:
        """The figures by name; none where they mean nothing for this condition.

        Names are up to 60 letters, digits, ``_``, ``-`` and ``.``, then ``/`` and the index of a class where the figure
        is of one. Those of built-in figures are taken.
        """
